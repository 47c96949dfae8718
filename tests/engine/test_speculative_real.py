"""SmolLM2 writes the same with drafts as without, to the bit, whether looked up or guessed by a part of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.answers import ask, run
from tuili.backend import Backend, BackendOptions, Batch, StepHandle
from tuili.backends import load_backend
from tuili.config import EngineConfig, SpeculativeConfig
from tuili.engine.drafts.draft_model import DraftBackend
from tuili.engine.engine import Engine
from tuili.runtime.front.text_parts import open_tokenizer
from tuili.types import TokenDelta
from tuili.weights.checkpoint import open_checkpoint

TEXT = "".join(
    f"def test_add_{name}():\n    result = Calculator().add({i}, {i + 1})\n    assert result == {2 * i + 1}\n\n"
    for i, name in enumerate(["one", "two", "three"])
)
MANNERS: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2},
    "sampled": {"temperature": 0.3, "top_p": 0.95, "seed": 7, "logprobs": 0},
    "several with penalties": {"temperature": 0.4, "n": 3, "frequency_penalty": 0.05, "repetition_penalty": 1.01},
}


@pytest.fixture(scope="module")
def backend(smollm2_gguf: Path) -> Iterator[Backend]:
    checkpoint = open_checkpoint(smollm2_gguf)
    loaded = load_backend("cpu", checkpoint.spec, checkpoint.weights, BackendOptions(max_model_len=512, num_threads=2))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def draft(smollm2_gguf: Path) -> Iterator[DraftBackend]:
    """SmolLM2 without its last layer: right now and then."""
    checkpoint = open_checkpoint(smollm2_gguf)
    spec = replace(checkpoint.spec, layers=checkpoint.spec.layers[:-1])
    weights = {name: w for name, w in checkpoint.weights.items() if f"layers.{spec.num_layers}." not in name}
    loaded = load_backend("cpu", spec, weights, BackendOptions(max_model_len=512, num_threads=2))
    yield DraftBackend(loaded, 512)
    loaded.close()


@pytest.fixture(scope="module")
def prompt(smollm2_gguf: Path) -> tuple[int, ...]:
    return tuple(open_tokenizer(open_checkpoint(smollm2_gguf)).encode(TEXT))


class Counted:
    """The backend, by whose steps a clock goes: every draft seems to pay."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.num_steps = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def execute(self, batch: Batch) -> StepHandle:
        self.num_steps += 1
        return self._backend.execute(batch)


def told(deltas: list[TokenDelta]) -> tuple[Any, ...]:
    entries = [entry for delta in deltas for entry in delta.logprobs or ()]
    return [t for delta in deltas for t in delta.token_ids], entries, deltas[-1].finish_reason


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
def test_drafts_change_no_bit(
    backend: Backend, draft: DraftBackend, prompt: tuple[int, ...], manner: dict[str, Any]
) -> None:
    found = {}
    by_model = SpeculativeConfig(method="draft_model", model="a part of itself", num_speculative_tokens=5)
    for speculative in (None, SpeculativeConfig(), by_model):
        config = EngineConfig(max_model_len=512, max_num_seqs=4, block_size=16, speculative=speculative)
        asked = draft if speculative is by_model else None
        counted = Counted(backend)
        engine = Engine(counted, config, draft=asked, clock=lambda counted=counted: counted.num_steps)
        requests = [ask("subject", prompt, max_tokens=48, **manner), ask("other", prompt[:40], max_tokens=48)]
        found[speculative] = run(engine, requests, checked=False)
        if speculative is not None:
            stats = engine.stats()
            assert stats.num_draft_tokens > stats.num_accepted_tokens > 10
    plain, *others = found.values()
    for drafted in others:
        for index in range(manner.get("n", 1)):
            assert told(drafted.deltas["subject", index]) == told(plain.deltas["subject", index])
        assert told(drafted.deltas["other", 0]) == told(plain.deltas["other", 0])
