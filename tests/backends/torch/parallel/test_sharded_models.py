"""A model in parts computes what it does in one piece: every option of a spec, in threads in place of processes.

TUILI_TEST_ALL_FAMILIES=1 takes every family's models instead of those that have an option of their own.
"""

from __future__ import annotations

import os
from dataclasses import replace
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import pytest
import torch

from support import family_models, tiny_models
from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, layer, random_weights
from support.rank_threads import InThreads
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.graphs import repeat
from tuili.models.families import for_hf
from tuili.models.spec import MlpSpec, ModelSpec
from tuili.quant.format import Tensor

TEXT = np.random.default_rng(7).integers(0, 97, 40).tolist()
OPTIONS = BackendOptions(max_model_len=64, device="cpu")
CHOSEN = (
    "llama-mqa-biases-wide-heads",
    "qwen3-tied-window",
    "gemma2",
    "opt-350m",
    "olmo2",
    "stablelm-12b",
    "falcon-40b",
    "falcon-rw",
    "bloom-six-heads",
    "granite-biases",
    "cohere-normed-heads",
)
NAMES = tuple(family_models.MODELS) if os.environ.get("TUILI_TEST_ALL_FAMILIES") else CHOSEN


def check(spec: ModelSpec, weights: dict[str, Tensor], sizes: tuple[int, ...], bound: float = 1e-4) -> None:
    expected = Driver(load_backend("torch", spec, weights, OPTIONS)).logits(TEXT)
    for size in sizes:
        found = Driver(InThreads(spec, weights, OPTIONS, size)).logits(TEXT, chunk=17)
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=f"{size} ranks")


@pytest.mark.parametrize("name", NAMES)
def test_families_in_two_parts(name: str) -> None:
    model = family_models.build(name)
    spec = tiny_models.spec_of(model)
    weights = tiny_models.canonical(model, for_hf(model.config.model_type), spec)
    check(spec, weights, (2,))


ODD = layer(
    MlpSpec(intermediate_size=70, bias=True),
    num_heads=6,
    num_kv_heads=3,
    qk_norm="full",
    sinks=True,
    **{f"{which}_bias": True for which in ("q", "k", "v", "out")},
)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_parts_need_not_be_alike(norm: str, num_kv_heads: int) -> None:
    odd = replace(ODD, mixer=replace(ODD.mixer, num_kv_heads=num_kv_heads))  # type: ignore[type-var]
    spec = decoder(odd, odd, norm=norm, lm_head_bias=True, tie_word_embeddings=True)
    check(spec, random_weights(spec), (2, 4))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K"])
def test_quantized_models_in_parts(name: str) -> None:
    spec = decoder(layer(MlpSpec(intermediate_size=512), num_heads=16), hidden_size=256, vocab_size=300)
    weights = random_weights(spec, name)
    check(spec, weights, (2, 3))  # Q4_K in three: within its groups


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.12), ("float16", 0.015)])
def test_half_precision_in_parts_keeps_its_bound(dtype: Any, bound: float) -> None:
    spec = decoder()
    weights = random_weights(spec)
    expected = Driver(load_backend("reference", spec, weights, OPTIONS)).logits(TEXT)
    found = Driver(InThreads(spec, weights, replace(OPTIONS, dtype=dtype), 2)).logits(TEXT)
    assert 0 < np.abs(found - expected).max() < bound * np.abs(expected).max()


@pytest.mark.parametrize("has_graphs", [False, True])
@pytest.mark.parametrize("is_drawn", [False, True])
def test_all_ranks_go_on_from_what_the_first_one_chose(has_graphs: bool, is_drawn: bool) -> None:
    spec = decoder()
    weights = random_weights(spec)
    rows: list[dict[str, Any]] = [{"temperature": 0.9, "seed": 7}, {"temperature": 1.1, "seed": 11, "top_k": 20}]
    rows = rows if is_drawn else [{}, {}]
    parts = InThreads(spec, weights, OPTIONS, 2)
    if has_graphs:
        for part in parts.parts:
            part.graphs = part.captured_by(repeat)
    found = []
    for backend in (load_backend("torch", spec, weights, OPTIONS), parts):
        driver = Driver(backend)
        texts = [driver.text(), driver.text()]
        how = {"sampling": sampling_arrays(rows), "want_logits": None}
        steps = [driver.step([Work(text, TEXT[:6]) for text in texts], **how)]
        for _ in range(6):
            carried = [Work(text, [0], carry=True) for text in texts]
            steps.append(driver.step(carried, **how))
        found.append([step.token_ids.tolist() for step in steps])
    assert found[1] == found[0]
    assert len({tuple(tokens) for tokens in found[0]}) > (3 if is_drawn else 1)
    if has_graphs:
        assert [len(part.graphs or ()) for part in parts.parts] == [1, 1]


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")
NOT_PERMITTED = RuntimeError("operation not permitted when stream is capturing")


def carried(rank: int, capture: Any) -> tuple[InThreads, list[list[int]]]:
    """Steps of two ranks of which one captures as told: what they chose."""
    spec = decoder()
    parts = InThreads(spec, random_weights(spec), OPTIONS, 2)
    for i, part in enumerate(parts.parts):
        part.graphs = part.captured_by(capture if i == rank else repeat)
    driver = Driver(parts)
    texts = [driver.text() for _ in range(3)]
    steps = [driver.step([Work(text, TEXT[:6]) for text in texts], want_logits=None)]
    try:
        for count in (3, 3, 2):
            steps.append(driver.step([Work(text, [0], carry=True) for text in texts[:count]], want_logits=None))
    finally:
        parts.close()
    return parts, [step.token_ids.tolist() for step in steps]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("error", "num_captures"), [(NO_MEMORY, 2), (NOT_PERMITTED, 1)])
def test_a_graph_that_one_rank_cannot_capture_nobody_has(rank: int, error: Exception, num_captures: int) -> None:
    """Sums of a step with a graph and of one without would be of other rows."""

    def lacking(work: Any) -> Any:
        work()
        raise error

    _, expected = carried(0, repeat)
    parts, found = carried(rank, lacking)
    assert found == expected
    for part in parts.parts:
        assert part.graphs is not None
        assert len(part.graphs) == 0
        assert part.graphs.num_captures == num_captures  # another size is tried where memory was what lacked


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [NO_MEMORY, NOT_PERMITTED])
def test_a_rank_that_fails_before_the_others_can_be_told_breaks_the_group(rank: int, error: Exception) -> None:
    """They wait for its sums."""

    def failing(_: Any) -> Any:
        raise error

    with pytest.raises(BrokenBarrierError if rank else type(error)):  # of the first one
        carried(rank, failing)


def test_a_part_caches_its_own_heads_only() -> None:
    spec = decoder()
    weights = random_weights(spec)
    whole = load_backend("torch", spec, weights, OPTIONS).cache_groups(16)
    parts = InThreads(spec, weights, OPTIONS, 2)
    assert parts.cache_groups(16)[0].block_bytes * 2 == whole[0].block_bytes
    assert sum(part.weight_bytes for part in parts.parts) < 1.1 * 4 * sum(t.dequantize().size for t in weights.values())
