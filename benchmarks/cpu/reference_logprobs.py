"""Reference log-probabilities as llama-perplexity stores them, 16 bits each, and how far other logits are from them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGIC = b"_logits_"
DEPTH = 16.0  # logits further below the row's largest one are stored as that


@dataclass(frozen=True, slots=True)
class ReferenceLogprobs:
    """Scored rows of every chunk, in the file's own precision, so that everybody is compared with the same numbers."""

    chunks: Sequence[Sequence[int]]
    scales: list[NDArray[np.float32]]  # per chunk [rows, 2]: step and smallest log-probability
    codes: list[NDArray[np.uint16]]  # per chunk [rows, vocab]

    @staticmethod
    def of(logits: Iterable[NDArray[np.float32]], chunks: Sequence[Sequence[int]]) -> ReferenceLogprobs:
        """Stores [rows, vocab] of each chunk."""
        scales, codes = zip(*map(_encoded, logits), strict=True)
        return ReferenceLogprobs(chunks, list(scales), list(codes))

    def save(self, path: Path) -> None:
        """Magic, context length, vocabulary, chunks, tokens, then step, minimum and codes of every row."""
        vocab_size, context = self.codes[0].shape[1], len(self.chunks[0])
        with path.open("wb") as file:
            file.write(MAGIC + struct.pack("<Iii", context, vocab_size, len(self.chunks)))
            file.write(np.array(self.chunks, np.int32).tobytes())
            for scales, codes in zip(self.scales, self.codes, strict=True):
                padded = np.zeros((len(codes), 4 + vocab_size + vocab_size % 2), np.uint16)
                padded[:, :4] = scales.view(np.uint16)
                padded[:, 4 : 4 + vocab_size] = codes
                file.write(padded.tobytes())

    def own_figures(self) -> dict[str, float]:
        """Of the reference itself."""
        losses = [-self._logprobs(i)[_rows(t), t] for i, t in enumerate(self._targets())]
        return {"perplexity": float(np.exp(np.concatenate(losses).mean())), "divergence": 0.0, "same_top": 100.0}

    def compare(self, logits: Iterable[NDArray[np.float32]]) -> dict[str, float]:
        """Perplexity, mean divergence and agreement of [rows, vocab] for each chunk."""
        losses, divergences, agreements = [], [], []
        for index, (values, targets) in enumerate(zip(logits, self._targets(), strict=True)):
            base, found = self._logprobs(index), log_softmax(values)
            losses.append(-found[_rows(targets), targets])
            terms = np.exp(base) * (base - found)
            divergences.append(np.where(base > -DEPTH, terms, 0).sum(-1))
            agreements.append(base.argmax(-1) == found.argmax(-1))
        return {
            "perplexity": float(np.exp(np.concatenate(losses).mean())),
            "divergence": float(np.concatenate(divergences).mean()),
            "same_top": float(np.concatenate(agreements).mean() * 100),
        }

    def _targets(self) -> list[NDArray[np.int32]]:
        return [np.array(chunk, np.int32)[len(chunk) // 2 + 1 :] for chunk in self.chunks]

    def _logprobs(self, index: int) -> NDArray[np.float64]:
        step, smallest = self.scales[index].astype(np.float64).T
        return smallest[:, None] + step[:, None] * self.codes[index]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def _encoded(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    logprobs = log_softmax(logits)
    top = logprobs.max(-1)
    smallest = np.maximum(logprobs.min(-1), top - DEPTH)
    step = (top - smallest) / 65535
    codes = np.rint(np.maximum(logprobs - smallest[:, None], 0) / step[:, None]).astype(np.uint16)
    return np.stack([step, smallest], -1).astype(np.float32), codes


def _rows(targets: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.arange(len(targets))
