"""Collects what an engine says, and holds it to the contract of exactly one terminal delta per answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from support.fake_backend import FakeBackend, solo
from support.oracle_drafter import OracleDrafter
from tuili.config import EngineConfig, SpeculativeConfig
from tuili.engine.drafts.draft_model import DraftBackend
from tuili.engine.engine import Engine
from tuili.types import SamplingParams, TokenDelta, TokenRequest


@dataclass
class Answers:
    """A sink. Deltas by (request id, index)."""

    deltas: dict[tuple[str, int], list[TokenDelta]] = field(default_factory=dict)

    def __call__(self, delta: TokenDelta) -> None:
        seen = self.deltas.setdefault((delta.request_id, delta.index), [])
        assert not seen or seen[-1].finish_reason is None, "a delta after the terminal one"
        assert (delta.error is not None) == (delta.finish_reason == "error")
        seen.append(delta)

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        return [t for delta in self.deltas.get((request_id, index), ()) for t in delta.token_ids]

    def reason(self, request_id: str, index: int = 0) -> str | None:
        deltas = self.deltas.get((request_id, index))
        return deltas[-1].finish_reason if deltas else None

    def last(self, request_id: str, index: int = 0) -> TokenDelta:
        return self.deltas[request_id, index][-1]


def ask(
    request_id: str,
    prompt: Iterable[int],
    *,
    priority: int = 0,
    seed: int = 1,
    eos: tuple[int, ...] = (),
    salt: str = "",
    bad_words: tuple[tuple[int, ...], ...] = (),
    dry_breakers: Mapping[int, tuple[tuple[int, ...], ...]] | None = None,
    **sampling: object,
) -> TokenRequest:
    """A request; greedy unless told otherwise."""
    return TokenRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"temperature": 0.0, **sampling}),  # type: ignore[arg-type]
        seed=seed,
        eos_token_ids=eos,
        priority=priority,
        cache_salt=salt,
        bad_words=bad_words,
        dry_breakers=dry_breakers or {},
    )


def make_engine(
    backend: FakeBackend | None = None,
    blocks: int | None = None,
    drafter: OracleDrafter | None = None,
    draft: FakeBackend | None = None,
    clock: Callable[[], float] | None = None,
    draft_len: int | None = None,
    **limits: object,
) -> Engine:
    """An engine with 16-token blocks; `blocks` of each cache group. With a drafter, whose drafts it always takes.

    Without a clock all steps take as long. `draft` is a draft model that takes no time.
    """
    backend = backend or FakeBackend()
    limits = {"max_model_len": 128, "block_size": 16, **limits}
    if blocks is not None:
        groups = len(backend.windows) + (0 if draft is None else len(draft.windows))
        limits["kv_cache_memory_bytes"] = blocks * backend.block_bytes * groups
    if draft is not None:
        limits["speculative"] = SpeculativeConfig(method="draft_model", model="draft")
        clock = clock or (lambda: float(backend.num_steps))
    if drafter is not None:
        limits["speculative"] = SpeculativeConfig(num_speculative_tokens=drafter.max_draft)
    config = EngineConfig(**limits)  # type: ignore[arg-type]
    drafts_for = None if draft is None else DraftBackend(draft, draft_len or config.max_model_len)
    return Engine(backend, config, draft=drafts_for, drafter=drafter, clock=clock or itertools.count().__next__)


def run(engine: Engine, requests: Iterable[TokenRequest], *, checked: bool = True) -> Answers:
    """Everything at once, until nothing is left to do."""
    answers = Answers()
    for request in requests:
        engine.add(request, answers)
    while engine.step():
        if checked:
            engine.check()
    assert_idle(engine)
    return answers


def assert_idle(engine: Engine) -> None:
    """Nothing runs, nothing waits, every block is free."""
    engine.check()
    stats = engine.stats()
    assert not engine.has_work()
    assert stats.num_running == stats.num_waiting == 0
    assert stats.num_free_blocks == stats.num_blocks


def assert_solo(answers: Answers, request: TokenRequest, max_model_len: int = 128) -> None:
    """Every answer of the request is what it would be alone."""
    for index in range(request.sampling.n):
        tokens, reason = solo(request, index, max_model_len)
        assert answers.tokens(request.request_id, index) == tokens, (request, index)
        assert answers.reason(request.request_id, index) == reason
