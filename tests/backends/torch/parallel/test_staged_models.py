"""A model in stages computes the same bits as in one piece: in threads in place of processes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from support import family_models, tiny_models
from support.answers import Answers, ask
from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, layer, random_weights
from support.rank_threads import InThreads
from tuili.backend import BackendOptions, StepResult
from tuili.backends import load_backend
from tuili.backends.torch.graphs import repeat
from tuili.config import EngineConfig
from tuili.engine import turns
from tuili.engine.engine import Engine
from tuili.models.families import for_hf
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor

TEXT = np.random.default_rng(7).integers(0, 97, 40).tolist()
OPTIONS = BackendOptions(max_model_len=64, device="cpu")
# One norm before, behind, on both sides, behind every sum; beside each other; learned positions, projections, ALiBi.
CHOSEN = (
    "llama-mqa-biases-wide-heads",
    "gemma2",
    "olmo2",
    "opt-350m",
    "falcon-40b",
    "bloom-six-heads",
    "cohere-normed-heads",
    "granite-biases",
)
NUM_LAYERS = 4


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny products gain nothing from two, and every stage would have as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def windowed() -> tuple[ModelSpec, dict[str, Tensor]]:
    """Windows in the middle only, so that a stage has one, both, or none of the cache's groups; one tied embedding."""
    narrow = layer(sliding_window=7)
    spec = decoder(layer(), narrow, narrow, layer(), tie_word_embeddings=True)
    return spec, random_weights(spec)


def same_logits(spec: ModelSpec, weights: dict[str, Tensor], width: int, ends: tuple[int, ...], **changes: Any) -> None:
    options = replace(OPTIONS, **changes)
    alone = load_backend("torch", spec, weights, options) if width == 1 else InThreads(spec, weights, options, width)
    staged = InThreads(spec, weights, options, width, ends)
    try:
        for chunk in (40, 17):
            found, expected = (Driver(backend).logits(TEXT, chunk=chunk) for backend in (staged, alone))
            assert np.array_equal(found, expected), f"layers end at {ends}, in chunks of {chunk}"
            assert len({row.argmax() for row in expected}) > 3
    finally:
        staged.close()
        alone.close()


@pytest.mark.parametrize("name", CHOSEN)
def test_families_in_two_stages(name: str) -> None:
    model = family_models.build(name)
    spec = tiny_models.spec_of(model)
    weights = tiny_models.canonical(model, for_hf(model.config.model_type), spec)
    same_logits(spec, weights, 1, (1, spec.num_layers))


@pytest.mark.parametrize("ends", [(1, 4), (2, 4), (3, 4), (1, 3, 4), (1, 2, 3, 4)])
def test_windows_and_a_tied_embedding_wherever_layers_are_cut(ends: tuple[int, ...]) -> None:
    same_logits(*windowed(), 1, ends)


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"kv_cache_dtype": "int8"}, {"deterministic": True}])
def test_other_numbers_are_the_same_too(changes: dict[str, Any]) -> None:
    same_logits(*windowed(), 1, (2, 4), **changes)


def test_stages_whose_layers_are_shared() -> None:
    same_logits(*windowed(), 2, (1, 4))


def written(backend: Any, rows: list[dict[str, Any]], *, has_carry: bool) -> list[StepResult]:
    """Two answers, a third prompt that comes in two parts beside them, a twin with copied blocks."""
    driver = Driver(backend)
    texts = [driver.text(), driver.text()]
    how = {"want_logits": None}
    steps = [driver.step([Work(text, TEXT[:6]) for text in texts], sampling=sampling_arrays(rows), **how)]

    def decodes() -> list[Work]:
        last = steps[-1].token_ids.tolist()
        return [Work(text, [0 if has_carry else last[i]], carry=has_carry) for i, text in enumerate(texts)]

    for _ in range(3):
        steps.append(driver.step(decodes(), sampling=sampling_arrays(rows), **how))
    late = driver.text()
    for part in (TEXT[:20], TEXT[20:30]):
        works = [*decodes(), Work(late, part)]
        steps.append(driver.step(works, sampling=sampling_arrays([*rows, {}]), **how))
    twin, copies = driver.fork(late)
    steps.append(driver.step([Work(twin, [5])], copies=copies, num_logprobs=np.full(1, 3, np.int32)))
    return steps


@pytest.mark.parametrize("has_graphs", [False, True])
@pytest.mark.parametrize("has_carry", [False, True])
@pytest.mark.parametrize(("width", "ends"), [(1, (2, 4)), (1, (1, 2, 4)), (2, (3, 4))])
def test_the_first_stage_goes_on_from_what_the_last_one_chose(
    width: int, ends: tuple[int, ...], has_carry: bool, has_graphs: bool
) -> None:
    spec, weights = windowed()
    rows: list[dict[str, Any]] = [{}, {"temperature": 1.1, "seed": 11, "top_k": 20}]
    staged, alone = InThreads(spec, weights, OPTIONS, width, ends), load_backend("torch", spec, weights, OPTIONS)
    if has_graphs:
        for part in staged.parts:
            part.graphs = part.captured_by(repeat)
    found, expected = (written(backend, rows, has_carry=has_carry) for backend in (staged, alone))
    for step, other in zip(found, expected, strict=True):
        assert step.token_ids.tolist() == other.token_ids.tolist()
    np.testing.assert_allclose(found[-1].top_logprobs, expected[-1].top_logprobs, atol=1e-5)
    if has_graphs:
        assert [len(part.graphs or ()) for part in staged.parts] == [1] * width * len(ends)
    staged.close()


def answered(backend: Any, blocks: int) -> tuple[Answers, Engine]:
    """Six requests, of which three begin alike, in a cache too small for all of them."""
    per_block = sum(group.block_bytes for group in backend.cache_groups(16))
    config = EngineConfig(
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=24,
        block_size=16,
        kv_cache_memory_bytes=blocks * per_block,
        kv_cache_dtype="auto",
    )
    engine, answers = Engine(backend, config), Answers()
    for i in range(6):
        prompt = [*TEXT[:17], i] if i % 2 else TEXT[i : i + 20 + i]
        engine.add(ask(f"r{i}", prompt, seed=i, temperature=0.9 * (i % 3), max_tokens=20, ignore_eos=True), answers)
    while engine.has_work():
        engine.step()
        engine.check()
    return answers, engine


@pytest.mark.parametrize(("is_ahead", "num_stages"), [(False, 1), (True, 1), (True, 3)])
def test_the_engine_writes_the_same_through_preemptions_and_cached_prefixes(
    is_ahead: bool, num_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps in turn, steps ahead, and in groups that take turns."""
    monkeypatch.setattr(turns, "MIN_GROUP", 2)
    spec, weights = windowed()
    staged = InThreads(spec, weights, OPTIONS, 1, (1, 3, 4))
    staged.is_asynchronous, staged.num_stages = is_ahead, num_stages
    if is_ahead:
        for part in staged.parts:
            part.graphs = part.captured_by(repeat)
    found, engine = answered(staged, blocks=8)
    expected, _ = answered(load_backend("torch", spec, weights, OPTIONS), blocks=100)
    for i in range(6):
        assert found.tokens(f"r{i}") == expected.tokens(f"r{i}")
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.num_prefix_hits > 0
    staged.close()


def test_a_stage_has_the_weights_and_caches_the_keys_of_its_layers_only() -> None:
    spec, weights = windowed()
    whole = load_backend("torch", spec, weights, OPTIONS)
    staged = InThreads(spec, weights, OPTIONS, 1, (1, 4))
    last, first = staged.parts
    groups, firsts, lasts = (backend.cache_groups(16) for backend in (whole, first, last))
    assert [group.window for group in firsts] == [group.window for group in groups]
    for group, a, b in zip(groups, firsts, lasts, strict=True):
        assert a.block_bytes + b.block_bytes == group.block_bytes
    assert [group.block_bytes for group in firsts].count(0) == 1
    table = 4 * spec.vocab_size * spec.hidden_size  # tied: in the first stage and in the last
    assert first.weight_bytes + last.weight_bytes == whole.weight_bytes + table
    assert first.ranks[0].rank == 0
    assert last.ranks[0].rank == 1
    first.allocate_cache([4, 4])
    assert first.allocate_swap([4, 4]) >= 0  # of a group that it has no layers of
    staged.close()


def test_what_is_no_weight_of_the_model_is_found_in_stages_too() -> None:
    spec, weights = windowed()
    with pytest.raises(Exception, match=r"weights missing or not the spec's: other\.weight"):
        InThreads(spec, weights | {"other.weight": weights["norm.weight"]}, OPTIONS, 1, (1, 4))
    missing = {name: tensor for name, tensor in weights.items() if name != "layers.3.o_proj.weight"}
    with pytest.raises(Exception, match=r"weights missing or not the spec's: layers\.3\.o_proj\.weight"):
        InThreads(spec, missing, OPTIONS, 1, (1, 4))
