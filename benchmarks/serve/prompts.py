"""What is asked: prompts of different lengths and what they have in common with nothing, from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WORDS = (
    "river",
    "mountain",
    "engine",
    "bread",
    "letter",
    "winter",
    "music",
    "garden",
    "stone",
    "bridge",
    "harbor",
    "paper",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion: always the same tokens, whoever answers it beside what."""

    prompt: str
    max_tokens: int
    seed: int
    temperature: float

    def body(self, **fields: Any) -> Mapping[str, Any]:
        """For POST /v1/completions, as a stream."""
        return {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "temperature": self.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }


def asks(
    count: int, *, seed: int, prompt_words: tuple[int, int], max_tokens: tuple[int, int], temperature: float
) -> Sequence[Ask]:
    """As many, with lengths from the ranges; no two begin alike."""
    rng = random.Random(seed)
    return [
        Ask(
            f"{rng.randrange(10**6)} " + " ".join(rng.choices(_WORDS, k=rng.randint(*prompt_words))),
            rng.randint(*max_tokens),
            rng.getrandbits(32),
            temperature,
        )
        for _ in range(count)
    ]
