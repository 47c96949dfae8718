"""Who has what: everything belongs to somebody, the first ranks have the most, groups of a format stay whole."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest

from support.random_models import decoder, layer
from tuili.backends.torch_sizes.division import Division, divide, own_spec, span
from tuili.errors import InvalidRequestError, UnsupportedModelError
from tuili.models.spec import LayerSpec, MlpSpec, ModelSpec, MoeSpec


def divisions(spec: ModelSpec, size: int, group: int = 1) -> list[Division]:
    return [divide(spec, rank, size, lambda _: group) for rank in range(size)]


@pytest.mark.parametrize(("total", "size", "unit"), [(9, 2, 1), (151_936, 8, 64), (101, 4, 64), (99, 3, 32)])
def test_spans_cover_all_once_and_the_first_is_as_large_as_any(total: int, size: int, unit: int) -> None:
    spans = [span(total, size, rank, unit) for rank in range(size)]
    assert list(chain(*spans)) == list(range(total))
    assert all(part.start % unit == 0 for part in spans if len(part))
    assert all(len(a) >= len(b) for a, b in pairwise(spans))


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size", "heads", "kv_heads"),
    [
        (8, 4, 2, [(0, 4), (4, 8)], [(0, 2), (2, 4)]),
        (9, 3, 2, [(0, 6), (6, 9)], [(0, 2), (2, 3)]),  # as SmolLM2: not alike, but all of it
        (8, 2, 4, [(0, 2), (2, 4), (4, 6), (6, 8)], [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (7, 1, 3, [(0, 3), (3, 5), (5, 7)], [(0, 1)] * 3),
        (6, 2, 3, [(0, 2), (2, 3), (3, 6)], [(0, 1), (0, 1), (1, 2)]),
    ],
)
def test_heads_go_with_their_key_value_head(
    num_heads: int, num_kv_heads: int, size: int, heads: list[tuple[int, int]], kv_heads: list[tuple[int, int]]
) -> None:
    spec = decoder(layer(num_heads=num_heads, num_kv_heads=num_kv_heads))
    shares = [division.layers[0] for division in divisions(spec, size)]
    assert [(share.heads.start, share.heads.stop) for share in shares] == heads
    assert [(share.kv_heads.start, share.kv_heads.stop) for share in shares] == kv_heads
    counted = [head for share in shares if share.counts_keys for head in share.kv_heads]
    assert counted == list(range(num_kv_heads))
    for share in shares:  # a head's keys are where it is
        of = [head * num_kv_heads // num_heads for head in share.heads]
        assert sorted(set(of)) == list(share.kv_heads)
        assert len(share.heads) % len(share.kv_heads) == 0


def test_columns_are_cut_between_groups_where_there_are_enough() -> None:
    spec = decoder(layer(MlpSpec(intermediate_size=768), num_heads=16, num_kv_heads=8, head_dim=64))
    first, second = (division.layers[0] for division in divisions(spec, 2, group=256))
    assert (len(first.inner), len(second.inner)) == (512, 256)
    assert (len(first.heads), len(second.heads)) == (8, 8)
    inner = [len(division.layers[0].inner) for division in divisions(spec, 4, group=256)]
    assert inner == [192] * 4  # too few groups


def test_the_part_is_a_spec_of_its_own() -> None:
    spec = decoder(vocab_size=300)
    own = [own_spec(spec, division) for division in divisions(spec, 2)]
    assert [part.vocab_size for part in own] == [192, 108]
    assert {part.layers[0].mixer.num_heads for part in own} == {2}
    assert [part.layers[0].mlp.intermediate_size for part in own] == [48, 48]  # type: ignore[union-attr]


def test_what_cannot_be_shared_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match=r"tensor_parallel_size must be at most 4, as .* 4 heads, got 5"):
        divide(decoder(), 0, 5, lambda _: 1)
    plain = layer()
    moe = MoeSpec(num_experts=4, num_experts_per_tok=2, expert=MlpSpec(intermediate_size=32))
    with pytest.raises(UnsupportedModelError, match="test: MoeSpec cannot be shared by 2 processes"):
        divide(decoder(LayerSpec(mixer=plain.mixer, mlp=moe)), 0, 2, lambda _: 1)
