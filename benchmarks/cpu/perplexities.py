"""Perplexity beside speed: ours and llama.cpp's, on the files they are measured with and the same chunks of a text."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.cpu.models import BenchModel
from benchmarks.cpu.session import OURS

from tuili.runtime.api.perplexity import perplexity
from tuili.runtime.loading.loading import LoadOptions, open_model

CONTEXT = 512


def measure_perplexities(
    model: BenchModel, llama_cpp: Path, text: Path, num_chunks: int, threads: int
) -> dict[str, Any]:
    """By contender, with what it was measured on. `llama_cpp` holds the built tools."""
    options = LoadOptions(num_threads=threads, max_model_len=CONTEXT + 1, max_num_seqs=1, enable_prefix_caching=False)
    with open_model(str(model.gguf), options) as pipeline:
        ours = perplexity(pipeline, text.read_text(encoding="utf-8"), context_len=CONTEXT, num_chunks=num_chunks)
    values = {OURS: round(ours.value, 3)}
    for label, path in model.llama_cpp.items():
        values[f"llama.cpp {label}"] = _llama_cpp(llama_cpp, path, text, num_chunks, threads)
    return {"text": text.name, "chunks": ours.num_chunks, "context": CONTEXT, "values": values}


def _llama_cpp(tools: Path, path: Path, text: Path, num_chunks: int, threads: int) -> float:
    command = [str(tools / "bin" / "llama-perplexity"), "-m", str(path), "-f", str(text), "-t", str(threads)]
    command += ["-c", str(CONTEXT), "--chunks", str(num_chunks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    if found is None:
        raise SystemExit("llama-perplexity printed no estimate")
    return round(float(found[1]), 3)
