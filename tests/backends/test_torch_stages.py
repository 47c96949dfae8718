"""Who has which layers: every layer once, in order, stages about alike in bytes, the head's and embedding's counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from support.random_models import MLP, decoder, layer
from tuili.backends.torch.parallel.loading import Place
from tuili.backends.torch.shard import Stage
from tuili.backends.torch_sizes.stages import shared_out, stage_ends
from tuili.errors import InvalidRequestError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec


def floats(_: str) -> str:
    return "F32"


@pytest.mark.parametrize(
    ("sizes", "count", "ends"),
    [
        ([1, 1, 1, 1], 2, (2, 4)),
        ([1, 1, 1, 1], 4, (1, 2, 3, 4)),
        ([5, 1, 1, 1, 1, 1], 2, (1, 6)),
        ([9, 1, 1, 1, 1], 3, (1, 3, 5)),  # the largest is given, the others are alike
        ([3, 1, 1, 1, 3], 3, (1, 4, 5)),
        ([7], 1, (1,)),
    ],
)
def test_the_largest_stage_is_as_small_as_can_be(sizes: list[int], count: int, ends: tuple[int, ...]) -> None:
    assert shared_out(sizes, count) == ends


@pytest.mark.parametrize("seed", range(20))
def test_no_other_way_to_cut_is_better(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 9, 7).tolist()
    ways = [(a, b, 7) for a in range(1, 6) for b in range(a + 1, 7)]
    found = shared_out(sizes, 3)
    assert found in ways
    assert max(sum(sizes[a:b]) for a, b in pairwise((0, *found))) == min(
        max(sum(sizes[a:b]) for a, b in pairwise((0, *way))) for way in ways
    )


def test_the_head_and_the_embedding_count() -> None:
    layers = [layer()] * 6
    for is_tied, expected in ((False, (3, 6)), (True, (3, 6))):
        spec = decoder(*layers, tie_word_embeddings=is_tied)
        assert stage_ends(spec, floats, 2, 4, keeps_packed=False) == expected
    head_only = decoder(*layers, vocab_size=900, hidden_size=64, embedding_size=None)
    found = stage_ends(head_only, floats, 3, 4, keeps_packed=False)
    assert found[0] < found[1] - found[0] > found[2] - found[1]  # the stage in the middle has neither


def test_what_stays_packed_counts_as_it_is_stored() -> None:
    wide = MlpSpec(intermediate_size=512)
    spec = decoder(*[layer(wide, num_heads=16)] * 4, hidden_size=256)

    def format_of(name: str) -> str:
        return "Q4_0" if name.startswith(("layers.0", "layers.1")) else "F32"

    assert stage_ends(spec, format_of, 2, 4, keeps_packed=True) == (3, 4)
    assert stage_ends(spec, format_of, 2, 4, keeps_packed=False) == (2, 4)


def test_more_stages_than_layers_are_refused() -> None:
    spec = decoder()
    with pytest.raises(
        InvalidRequestError, match="pipeline_parallel_size must be at most 2, as the model has 2 layers, got 3"
    ):
        stage_ends(spec, floats, 3, 4, keeps_packed=False)


def test_the_first_process_is_of_the_last_stage() -> None:
    places = [Place(Path(), rank, 2, (1, 3, 4)) for rank in range(6)]
    assert [place.stage for place in places] == [2, 2, 0, 0, 1, 1]
    assert [place.layers for place in places[::2]] == [range(3, 4), range(1), range(1, 3)]
    assert places[0].size == 6


class Lonely:
    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_weight_is_of_one_stage_but_for_a_tied_embedding(is_tied: bool) -> None:
    spec = decoder(
        *[layer(MLP)] * 3,
        *(),
        tie_word_embeddings=is_tied,
        position="learned",
        embedding_norm=True,
        embedding_size=32,
        lm_head_bias=True,
    )
    stages = [Stage(ranks=Lonely(i), layers=range(i, i + 1), size=3) for i in range(3)]  # type: ignore[arg-type]
    owners = {name: [s.ranks.rank for s in stages if s.has(name, is_tied)] for name in tensor_shapes(spec)}
    assert owners.pop("embed_tokens.weight") == ([0, 2] if is_tied else [0])
    assert {len(found) for found in owners.values()} == {1}
    assert owners["project_in.weight"] == owners["embed_positions.weight"] == [0]
    assert owners["norm.weight"] == owners["project_out.weight"] == owners["lm_head.bias"] == [2]
    assert owners["layers.1.o_proj.weight"] == [1]
