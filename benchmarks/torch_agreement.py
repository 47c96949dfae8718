"""How near the torch backend's answers are to the cpu backend's, and to the reference's, on real models.

    python -m benchmarks.torch_agreement MODEL... [--text FILE...] [--chunks 2] [--device cpu]

Of the second half of every chunk of 512 tokens: perplexity, the mean over tokens of KL(base || found) in nats, and the
share of tokens whose likeliest one is the base's. The reference computes in float32 what the file's weights say.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import machine
from benchmarks.cpu.quality import CONTEXT, second_half_logits, text_chunks
from benchmarks.cpu.reference_logprobs import log_softmax

from tuili.backend import BackendOptions, Float32
from tuili.backends import load_backend
from tuili.weights.checkpoint import Checkpoint, open_checkpoint

TEXTS = ("README.md", "docs/architecture.md")
BASES = ("reference", "cpu")
VARIANTS: Mapping[str, tuple[str, str]] = {
    "reference": ("reference", "auto"),
    "cpu": ("cpu", "auto"),
    "torch float32": ("torch", "float32"),
    "torch bfloat16": ("torch", "bfloat16"),
}


def measure(checkpoint: Checkpoint, chunks: Sequence[Sequence[int]], device: str) -> Iterator[dict[str, Any]]:
    """A row for each variant, which is compared with the bases before it."""
    bases: dict[str, Float32] = {}
    targets = np.concatenate([np.array(chunk)[len(chunk) // 2 + 1 :] for chunk in chunks])
    for variant, (name, dtype) in VARIANTS.items():
        options = BackendOptions(max_model_len=CONTEXT, dtype=dtype, device=device if name == "torch" else None)
        backend = load_backend(name, checkpoint.spec, checkpoint.weights, options)
        logits = np.concatenate([second_half_logits(backend, chunk) for chunk in chunks])
        backend.close()
        losses = [-log_softmax(row[None])[0, target] for row, target in zip(logits, targets, strict=True)]
        row: dict[str, Any] = {"backend": variant, "perplexity": round(float(np.exp(np.mean(losses))), 4)}
        for base, expected in bases.items():
            row |= {f"{key} {base}": value for key, value in compared(expected, logits).items()}
        if variant in BASES:
            bases[variant] = logits
        yield row


def compared(expected: Float32, found: Float32) -> dict[str, float]:
    """Of logits [N, vocab]; in float64, a row at a time."""
    divergences = []
    for base_row, row in zip(expected, found, strict=True):
        base, other = log_softmax(base_row[None]), log_softmax(row[None])
        divergences.append(float((np.exp(base) * (base - other)).sum()))
    same = (expected.argmax(-1) == found.argmax(-1)).mean()
    largest = np.abs(found - expected).max() / np.abs(expected).max()
    return {
        "same_top_percent": round(float(same) * 100, 2),
        "divergence": float(f"{np.mean(divergences):.3g}"),
        "largest_difference": float(f"{largest:.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files or folders")
    parser.add_argument("--text", nargs="+", type=Path, default=[Path(text) for text in TEXTS])
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="torch's")
    parser.add_argument("--dry-run", action="store_true", help="leave the stored results as they are")
    given = parser.parse_args()
    text, rows = "\n".join(path.read_text(encoding="utf-8") for path in given.text), []
    for path in given.models:
        for row in measure(open_checkpoint(path), text_chunks(path, text, given.chunks), given.device):
            rows.append({"model": path.stem, **row})
            print(json.dumps(rows[-1]), flush=True)
    settings = {
        "context": CONTEXT, "chunks": given.chunks, "device": given.device, "text": [path.name for path in given.text],
    }  # fmt: skip
    if not given.dry_run:
        machine.save("torch_agreement", settings, rows)


if __name__ == "__main__":
    main()
