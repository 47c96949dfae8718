"""The numerics contract over every family: what an answer is never depends on what happens around it, to the last bit.

Tiny random models on the cpu backend. Each request is answered alone on one thread, then beside others on two: in one
batch, in small chunks, from cached prefixes, after preemption and along drafts.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from support import family_models, tiny_models
from support.answers import Answers, ask, run
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.config import EngineConfig, KvCacheDtype, SpeculativeConfig
from tuili.engine.engine import Engine
from tuili.engine.sequence import Sequence
from tuili.models.families import for_hf
from tuili.types import BeamSearchParams, SamplingParams, TokenRequest

CONTEXT, BLOCK, VOCAB = 128, 16, 97
NUM_TOKENS = 8
PROMPT = np.random.default_rng(4).integers(0, VOCAB, 53).tolist()
SCORED = {"max_tokens": NUM_TOKENS, "logprobs": 5}  # normalized by all logits: a changed one shows


def subjects() -> list[TokenRequest]:
    """All manners of choosing, over prompts that begin alike and end apart."""
    penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.3}
    dry = {"dry_multiplier": 0.8, "dry_penalty_last_n": -1, "presence_penalty": 0.4, "repeat_last_n": 20}
    beams = BeamSearchParams(beam_width=3, max_tokens=NUM_TOKENS, temperature=0.7)
    return [
        ask("greedy", PROMPT, **SCORED),
        ask("sampled", PROMPT[:49], temperature=0.9, top_p=0.95, top_k=50, seed=5, **penalties, **SCORED),
        ask("steered", PROMPT[:37], temperature=1.1, mirostat=2, seed=6, bad_words=((28,), (25, 31)), **dry, **SCORED),
        ask("several", PROMPT[:45], temperature=1.2, n=3, min_p=0.02, typical_p=0.95, seed=7, **SCORED),
        ask("scored", PROMPT[:41], prompt_logprobs=2, **SCORED),
        TokenRequest(
            request_id="beams",
            prompt_token_ids=tuple(PROMPT[:33]),
            sampling=SamplingParams(n=3, max_tokens=NUM_TOKENS, seed=0),
            seed=0,
            beam_search=beams,
        ),
    ]


def others(count: int) -> list[TokenRequest]:
    """Company of many lengths."""
    generator = np.random.default_rng(9)
    return [
        ask(
            f"other {i}",
            generator.integers(0, VOCAB, 3 + 7 * i).tolist(),
            max_tokens=3 + i % 5,
            temperature=0.5 * (i % 3),
            seed=i,
            priority=-(i % 2),
        )
        for i in range(count)
    ]


@dataclass
class Prompter:
    """Drafts from known answers; every fourth token of a draft is wrong."""

    known: Mapping[str, list[int]]
    probe_gain: ClassVar[float] = 1.3

    def chances(self, sequence: Sequence, limit: int) -> ListLike[float]:
        return [1.0] * len(self._next(sequence)[:limit])

    def draft(self, wanted: ListLike[tuple[Sequence, int]]) -> list[ListLike[int]]:
        return [self._next(sequence)[:width] for sequence, width in wanted]

    def seconds(self, num_sequences: int) -> float:
        return 0.0

    def release(self, sequence: Sequence) -> None: ...
    def forget(self) -> None: ...
    def check(self, running: ListLike[Sequence]) -> None: ...

    def _next(self, sequence: Sequence) -> list[int]:
        left = self.known.get(sequence.request.request_id, [])[sequence.num_output_tokens :]
        return [(token_id + (i % 4 == 3)) % VOCAB for i, token_id in enumerate(left[:6])]


def engine(backend: Backend, blocks: int | None = None, drafter: Prompter | None = None, **limits: Any) -> Engine:
    fields: dict[str, Any] = {"max_model_len": CONTEXT, "block_size": BLOCK, **limits}
    if blocks is not None:
        block_bytes = sum(group.block_bytes for group in backend.cache_groups(BLOCK))
        fields["kv_cache_memory_bytes"] = blocks * block_bytes
    if drafter is not None:
        fields["speculative"] = SpeculativeConfig(num_speculative_tokens=6)
    return Engine(backend, EngineConfig(**fields), drafter=drafter, clock=iter(range(10**6)).__next__)


def told(answers: Answers) -> dict[object, object]:
    """Everything about the subjects' answers, however many steps brought it."""
    found: dict[object, object] = {}
    for request in subjects():
        for index in range(request.sampling.n):
            deltas = answers.deltas[request.request_id, index]
            found[request.request_id, index] = (
                [token_id for d in deltas for token_id in d.token_ids],
                [entry for d in deltas for entry in d.logprobs or ()],
                [entry for d in deltas for entry in d.prompt_logprobs or ()],
                deltas[-1].finish_reason,
                deltas[-1].beam,
            )
    return found


def alone(backend: Backend) -> dict[object, object]:
    answers = Answers()
    for request in subjects():
        single = engine(backend, max_num_seqs=1, enable_prefix_caching=False)
        answers.deltas |= run(single, [request], checked=False).deltas
    return told(answers)


def preempted(backend: Backend) -> dict[object, object]:
    """With as few blocks as it takes, which is fewer where windows let go of theirs."""
    for blocks in (10, 7, 5, 4):
        tight = engine(backend, blocks=blocks, max_num_seqs=6)
        answers = run(tight, [*subjects(), *others(5)], checked=False)
        if tight.stats().num_preemptions > 0:
            break
    assert tight.stats().num_preemptions > 0
    return told(answers)


def crowded(backend: Backend, known: Mapping[str, list[int]]) -> dict[str, dict[object, object]]:
    """The same requests in other company, by what is done to them."""
    wide = engine(backend, max_num_seqs=16, max_num_batched_tokens=512)
    found = {"in a batch": told(run(wide, [*others(4), *subjects(), *others(9)[4:]], checked=False))}
    found["from cached prefixes"] = told(run(wide, subjects(), checked=False))
    assert wide.stats().num_prefix_hits > 100
    narrow = engine(backend, max_num_seqs=4, max_num_batched_tokens=19)
    found["in chunks"] = told(run(narrow, [*others(3), *subjects()], checked=False))
    found["preempted"] = preempted(backend)
    drafted = engine(backend, drafter=Prompter(known), max_num_seqs=16)
    found["along drafts"] = told(run(drafted, [*subjects(), *others(2)], checked=False))
    stats = drafted.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    return found


@pytest.mark.parametrize("name", family_models.MODELS)
def test_every_answer_is_what_it_is_alone(name: str) -> None:
    model = family_models.build(name)
    spec = tiny_models.spec_of(model)
    weights = tiny_models.canonical(model, for_hf(model.config.model_type), spec)
    kv_cache_dtype: KvCacheDtype = "int8" if len(name) % 3 == 0 else "bfloat16"
    one, two = (
        load_backend(
            "cpu", spec, weights, BackendOptions(max_model_len=CONTEXT, num_threads=n, kv_cache_dtype=kv_cache_dtype)
        )
        for n in (1, 2)
    )
    expected = alone(one)
    known = {key[0]: found[0] for key, found in expected.items() if key[1] == 0}  # type: ignore[index]
    for manner, found in crowded(two, known).items():
        for answer, what in found.items():
            assert what == expected[answer], (manner, answer)
    assert len({tuple(found[0]) for found in expected.values()}) > 5  # type: ignore[index]
