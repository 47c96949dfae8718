"""Perplexity and divergence of every weight format, ours and llama.cpp's, on the same files and the same tokens.

    python -m benchmarks.cpu.quality --folder FOLDER --text wikitext2/test.txt [--chunks 10] [--formats Q4_0,Q8_0]

Divergence is the mean over tokens of KL(float32 || found), in nats, where float32 is the reference backend on the
same file's weights: what arithmetic and KV cache lose, not what the format lost. Perplexity shows both. Both sides
read one file of reference log-probabilities, in llama-perplexity's layout. Formats of blocks of 256 weights are made of
the same model widened with zeros (padded_llama.py). Formats stored before, with the same settings, stay.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import machine
from benchmarks.cpu.models import ModelMaker
from benchmarks.cpu.padded_llama import write_padded
from benchmarks.cpu.reference_logprobs import ReferenceLogprobs

from tuili.backend import Backend, BackendOptions, Batch, Float32, SamplingArrays
from tuili.backends import load_backend
from tuili.config import KvCacheDtype
from tuili.runtime.front.text_parts import open_tokenizer
from tuili.weights.checkpoint import open_checkpoint

CONTEXT = 512
BLOCK_SIZE = 64
WIDE_FORMATS = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS")
FORMATS: Mapping[str, Sequence[str]] = {
    "Q4_0": ("--pure",),
    "Q4_1": ("--pure",),
    "Q5_0": ("--pure",),
    "Q5_1": ("--pure",),
    "Q8_0": ("--pure",),
    "F16": ("--pure",),
    "BF16": ("--pure",),
    **dict.fromkeys(WIDE_FORMATS, ()),  # mixed as they are usually published
}
OUR_CACHES: Mapping[KvCacheDtype, str] = {"bfloat16": "bf16", "int8": "int8"}
PEER_CACHES = ("f16", "bf16")
_FIGURES = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
    "divergence": r"Mean\s+KLD:\s*([\d.-]+)",
    "same_top": r"Same top p:\s*([\d.]+)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """One engine on one file; divergence in nats, same_top the percentage of tokens whose likeliest one agrees."""

    format: str
    engine: str
    kv_cache: str
    perplexity: float
    divergence: float
    same_top: float


def measure_format(maker: ModelMaker, source: Path, name: str, chunks: Sequence[Sequence[int]]) -> Iterator[Quality]:
    """Ours, then llama.cpp with each of its caches."""
    path = maker.quantized(source, f"{source.stem}-quality-{name.lower()}.gguf", name, FORMATS[name])
    base_path = maker.folder / "reference.kld"
    checkpoint = open_checkpoint(path)
    options = BackendOptions(max_model_len=CONTEXT)
    reference = load_backend("reference", checkpoint.spec, checkpoint.weights, options)
    base = ReferenceLogprobs.of((second_half_logits(reference, chunk) for chunk in chunks), chunks)
    reference.close()
    base.save(base_path)
    yield Quality(format="float32 of " + name, engine="reference", kv_cache="f32", **base.own_figures())
    for cache, label in OUR_CACHES.items():
        backend = load_backend("cpu", checkpoint.spec, checkpoint.weights, replace(options, kv_cache_dtype=cache))
        score = base.compare(second_half_logits(backend, chunk) for chunk in chunks)
        backend.close()
        yield Quality(format=name, engine="tuili", kv_cache=label, **score)
    for cache in PEER_CACHES:
        yield Quality(format=name, engine="llama.cpp", kv_cache=cache, **_llama_cpp(maker, path, base_path, cache))
    base_path.unlink()


def second_half_logits(backend: Backend, ids: Sequence[int]) -> Float32:
    """[len / 2 - 1, vocab]: what predicts tokens len / 2 + 1 .. len - 1, each given all before it."""
    count, first = len(ids), len(ids) // 2
    groups = backend.cache_groups(BLOCK_SIZE)
    num_blocks = -(-count // BLOCK_SIZE)
    backend.allocate_cache([num_blocks] * len(groups))
    rows = np.arange(first, count - 1, dtype=np.int32)
    positions = np.arange(count, dtype=np.int32)
    batch = Batch(
        input_ids=np.array(ids, np.int32),
        positions=positions,
        query_start=np.array([0, count], np.int32),
        seq_lens=np.array([count], np.int32),
        block_tables=np.tile(np.arange(num_blocks, dtype=np.int32), (len(groups), 1, 1)),
        slot_mapping=np.tile(positions, (len(groups), 1)),
        block_copies=np.zeros((0, 3), np.int32),
        slots=np.zeros(1, np.int32),
        carry=np.zeros(1, np.bool_),
        sample_rows=rows,
        targets=np.array(ids, np.int32)[rows + 1],
        num_logprobs=np.full(len(rows), -1, np.int32),
        sampling=_greedy(len(rows)),
        want_logits=np.ones(len(rows), np.bool_),
    )
    logits = backend.execute(batch).result().logits
    assert logits is not None
    return logits


def _greedy(num_rows: int) -> SamplingArrays:
    floats = {name: np.zeros(num_rows, np.float32) for name in ("temperature", "min_p")}
    penalties = {name: np.zeros(num_rows, np.float32) for name in ("presence_penalty", "frequency_penalty")}
    ones = {name: np.ones(num_rows, np.float32) for name in ("top_p", "repetition_penalty")}
    ints = {name: np.zeros(num_rows, np.int32) for name in ("top_k", "sample_index", "position")}
    parts = ("history", "bias", "chain", "dry")
    starts = {f"{name}_start": np.zeros(num_rows + 1, np.int32) for name in parts}
    names = ("history_ids", "history_counts", "bias_ids", "chain_kinds", "dry_ids")
    empty = {name: np.zeros(0, np.int32) for name in names}
    return SamplingArrays(
        seed=np.zeros(num_rows, np.uint64),
        bias_values=np.zeros(0, np.float32),
        chain_values=np.zeros((0, 3), np.float32),
        dry_values=np.zeros(0, np.float32),
        sampler_state=np.full(num_rows, np.nan, np.float32),
        **floats,
        **penalties,
        **ones,
        **ints,
        **starts,
        **empty,
    )


def _llama_cpp(maker: ModelMaker, path: Path, base: Path, cache: str) -> dict[str, float]:
    tool = maker.llama_cpp / "bin" / "llama-perplexity"
    command = [str(tool), "-m", str(path), "--kl-divergence", "--kl-divergence-base", str(base), "-t", "2"]
    command += ["-c", str(CONTEXT), "-ctk", cache, "-ctv", cache, "-fa", "on"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {name: re.search(pattern, done.stdout + done.stderr) for name, pattern in _FIGURES.items()}
    if missing := [name for name, match in found.items() if match is None]:
        raise SystemExit(f"llama-perplexity printed no {missing}")
    return {name: float(match[1]) for name, match in found.items() if match is not None}


def text_chunks(path: Path, text: str, count: int) -> list[tuple[int, ...]]:
    """Disjoint chunks of CONTEXT tokens; a bos token, where the vocabulary has texts begin with one, leads each."""
    tokenizer = open_tokenizer(open_checkpoint(path))
    ids = tokenizer.encode(text)
    bos = tokenizer.names.bos_token_id
    chunks = [tuple(ids[i * CONTEXT : (i + 1) * CONTEXT]) for i in range(count)]
    return [(bos, *chunk[1:]) for chunk in chunks] if bos is not None and bos == ids[0] else chunks


def _stored_rows(settings: Mapping[str, object]) -> list[dict[str, Any]]:
    path = machine.RESULTS / "cpu_quality.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    rows: list[dict[str, Any]] = stored.get("rows", [])
    return rows if stored.get("settings") == settings else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what setup_peers filled")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--formats", default=",".join(FORMATS))
    arguments = parser.parse_args()
    maker = ModelMaker.in_folder(arguments.folder)
    model = maker.smollm2().gguf
    source = maker.quantized(model, "smollm2-135m-f32.gguf", "F32", ())
    wide = maker.folder / "smollm2-135m-wide-f32.gguf"
    if not wide.exists():
        write_padded(source, wide)
    chunks = text_chunks(source, arguments.text.read_text(encoding="utf-8"), arguments.chunks)
    settings = {"context": CONTEXT, "chunks": arguments.chunks, "model": model.name, "text": arguments.text.name}
    rows = _stored_rows(settings)
    for name in arguments.formats.split(","):
        rows = [row for row in rows if row["format"] not in (name, "float32 of " + name)]
        for row in measure_format(maker, wide if name in WIDE_FORMATS else source, name, chunks):
            rows.append(asdict(row))
            print(json.dumps(rows[-1]), flush=True)
        machine.save("cpu_quality", settings, rows)


if __name__ == "__main__":
    main()
