"""What is reckoned of each process's GPU, against what parts of a model in torch take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.random_models import MLP, decoder, layer, random_weights
from support.rank_threads import InThreads
from tuili.backend import BackendOptions
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec, ModelSpec
from tuili.quant import BY_NAME
from tuili.runtime.devices.torch_ranks import Parts, deal_out

NARROW = layer(sliding_window=7, q_bias=True, out_bias=True)
WIDE = layer(replace(MLP, bias=True), qk_norm="full", sinks=True)


def taken(backend: InThreads) -> list[int]:
    """Bytes of each part's cache."""
    return [sum(plane.nbytes for kept in part._cache.layers for plane in kept.planes()) for part in backend.parts]


@pytest.mark.parametrize("cache", ["auto", "int8"])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("parts", [Parts(), Parts(pipeline=3), Parts(tensor=2), Parts(tensor=3, pipeline=2)])
def test_weights_and_cache_are_what_each_part_has(parts: Parts, is_tied: bool, cache: str) -> None:
    """Windows in some stages only; heads, rows of MLPs and of the vocabulary that three cannot share evenly."""
    spec = decoder(
        *(layer(num_heads=4, num_kv_heads=2), NARROW, WIDE, NARROW, layer()),
        tie_word_embeddings=is_tied,
        position="learned",
        embedding_size=24,
        lm_head_bias=True,
    )
    options = BackendOptions(max_model_len=64, device="cpu", kv_cache_dtype=cache)  # type: ignore[arg-type]
    stored = {name: ("F32", shape) for name, shape in tensor_shapes(spec).items()}
    ranks = deal_out(spec, stored, parts, 4, keeps_packed=False)
    first = ranks[: parts.tensor]  # of the last stage
    assert all(rank.has_head for rank in first)
    ends = tuple(sorted({rank.layers.stop for rank in ranks}))
    backend = InThreads(spec, random_weights(spec), options, parts.tensor, ends)
    try:
        assert [rank.weight_bytes for rank in ranks] == [part.weight_bytes for part in backend.parts]
        groups = [rank.cache_groups(cache, 16) for rank in ranks]  # type: ignore[arg-type]
        assert groups == [part.cache_groups(16) for part in backend.parts]
        backend.allocate_cache([5, 3])
        assert [full.block_bytes * 5 + window.block_bytes * 3 for full, window in groups] == taken(backend)
    finally:
        backend.close()


def test_columns_cut_within_a_group_become_floats() -> None:
    """Of three processes no part of 64 columns is whole groups of 32: the second's begins and ends within one."""
    spec = decoder(layer(MlpSpec(intermediate_size=64), num_heads=6, num_kv_heads=6, head_dim=32), hidden_size=32)
    stored = {name: ("Q8_0" if len(shape) > 1 else "F32", shape) for name, shape in tensor_shapes(spec).items()}
    whole = deal_out(spec, stored, Parts(), 2, keeps_packed=True)[0]
    shared = deal_out(spec, stored, Parts(tensor=3), 2, keeps_packed=True)
    kept = BY_NAME["Q8_0"]
    down, rows = 32 * 64, 2 * 64 * 32  # weights of matrices whose columns are cut, and of those whose rows are
    packed = whole.layer_bytes[0] - 2 * 32 * 4
    assert packed == (down + rows + 4 * 6 * 32 * 32) // kept.group_size * kept.group_bytes
    each = (rows + 4 * 6 * 32 * 32) // kept.group_size * kept.group_bytes
    assert sum(rank.layer_bytes[0] - 2 * 32 * 4 for rank in shared) == each + 2 * down


def rank_layers(spec: ModelSpec, parts: Parts) -> list[range]:
    stored = {name: ("F32", shape) for name, shape in tensor_shapes(spec).items()}
    return [rank.layers for rank in deal_out(spec, stored, parts, 4, keeps_packed=False)]


def test_ranks_come_in_the_order_of_their_devices() -> None:
    """The first of them are the last stage, which chooses tokens."""
    spec = decoder(*[layer()] * 6)
    assert rank_layers(spec, Parts(pipeline=3)) == [range(4, 6), range(2), range(2, 4)]
    assert rank_layers(spec, Parts(tensor=2, pipeline=2)) == [range(3, 6)] * 2 + [range(3)] * 2
