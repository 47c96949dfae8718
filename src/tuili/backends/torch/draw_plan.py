"""What the device must know to choose rows, worked out on the host and sent in one copy.

Rows whose samplers come in the same order make a part, if they need as many of the best candidates; in the default
order it does not matter which samplers a row leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuili.backend import CARRIED_STATE, Bool, Float32, Int32, Int64, SamplerKind, SamplingArrays, UInt32
from tuili.backends.torch.rng import PURPOSE_TOKEN, PURPOSE_XTC, uniforms
from tuili.backends.torch.step import Uploader
from tuili.backends.torch_sizes.footprint import PART_LOGITS

NARROW = 1024  # candidates that are found without a sort of all
_ALL = float(1 << 24)  # candidates: no vocabulary is larger
_OFF_MASS = 2.0  # a share that nothing reaches
# The default order, and the values with which each sampler changes nothing.
_DEFAULT: Mapping[SamplerKind, tuple[float, float, float]] = {
    SamplerKind.PENALTIES: (0.0, 0.0, 0.0),
    SamplerKind.DRY: (0.0, 0.0, 0.0),
    SamplerKind.TEMPERATURE: (1.0, 0.0, 1.0),
    SamplerKind.TOP_N_SIGMA: (-1.0, 0.0, 0.0),
    SamplerKind.MIN_P: (0.0, 0.0, 0.0),
    SamplerKind.TOP_K: (_ALL, 0.0, 0.0),
    SamplerKind.TYPICAL_P: (_OFF_MASS, 0.0, 0.0),
    SamplerKind.TOP_P: (_OFF_MASS, 0.0, 0.0),
    SamplerKind.XTC: (0.0, 0.0, 0.0),
}
_PLACES = np.array([list(_DEFAULT).index(kind) if kind in _DEFAULT else -1 for kind in SamplerKind])
# Of values [n, 3]: the rows in which a sampler looks at candidates best first. TOP_K does where it limits any.
_NEEDS_ORDER: Mapping[SamplerKind, Callable[[Float32], Bool]] = {
    SamplerKind.MIN_P: lambda values: values[:, 1] > 1,
    SamplerKind.TYPICAL_P: lambda values: values[:, 0] < _OFF_MASS,
    SamplerKind.TOP_P: lambda values: values[:, 0] < _OFF_MASS,
    SamplerKind.XTC: lambda values: values[:, 0] > 0,
    SamplerKind.MIROSTAT_1: lambda values: np.ones(len(values), np.bool_),
}


@dataclass(frozen=True, slots=True)
class DrawStep:
    """A sampler, and the values of the part's rows."""

    kind: SamplerKind
    values: Tensor  # float32 [n, 3]
    most: tuple[float, float, float]  # the largest of each


@dataclass(frozen=True, slots=True)
class DrawPart:
    """n rows of one tile, and the numbers of each on the device."""

    rows: Tensor  # int32 [n] within the tile
    steps: tuple[DrawStep, ...]  # in their order; what changes nothing is left out
    num_drawn: int  # rows that are more than the largest logit
    columns: Mapping[str, Tensor]  # [n] int32 is_greedy; float32 penalties and state; float64 uniforms "u", "chance"
    csr: Mapping[str, tuple[Tensor, Tensor, Tensor]]  # bias, history, dry: rows int32, ids int32, values [entries]
    allow_mask: Tensor | None  # int32 [n, words]
    counts_carried: bool = False  # an id of -1 in a history is the token that its row was computed from
    has_carried: bool = False  # CARRIED_STATE in column "state" is what the step before has left


@dataclass(frozen=True, slots=True)
class DrawOrder:
    """Rows whose samplers come in one order."""

    rows: Int64  # [n] ascending
    kinds: tuple[SamplerKind, ...]
    values: Float32  # [n, len(kinds), 3]; of what a row leaves out, those that change nothing


class _Planned(NamedTuple):
    """A part to be."""

    first: int  # row of its tile
    rows: Int64  # [n]
    kinds: tuple[SamplerKind, ...]
    values: Float32  # [n, len(kinds), 3]


def draw_orders(s: SamplingArrays, rows: Int64) -> list[DrawOrder]:
    """The orders of some rows, the default one first. Rows without a chain are in it, as if they had one."""
    lengths = np.diff(s.chain_start)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    kinds, values = s.chain_kinds[: len(owners)], s.chain_values[: len(owners)]
    in_order = _in_default_order(kinds, owners, len(lengths))
    table = np.tile(np.array(list(_DEFAULT.values()), np.float32), (len(lengths), 1, 1))
    is_placed = in_order[owners]
    table[owners[is_placed], _PLACES[kinds[is_placed]]] = values[is_placed]
    _fill_plain(table, s, (lengths == 0) & (s.temperature > 0))
    mine = rows[in_order[rows]]
    orders = [DrawOrder(mine, tuple(_DEFAULT), table[mine])]
    others: dict[tuple[int, ...], list[int]] = {}
    for r in rows[~in_order[rows]].tolist():
        others.setdefault(tuple(kinds[s.chain_start[r] : s.chain_start[r + 1]].tolist()), []).append(r)
    for chain, members in others.items():
        at = s.chain_start[members][:, None] + np.arange(len(chain))
        orders.append(DrawOrder(np.array(members), tuple(map(SamplerKind, chain)), values[at]))
    return [_with_limits_first(order) for order in orders]


def _fill_plain(table: Float32, s: SamplingArrays, rows: Bool) -> None:
    for kind, values, is_set in (
        (SamplerKind.TEMPERATURE, s.temperature, rows),
        (SamplerKind.MIN_P, s.min_p, rows),
        (SamplerKind.TOP_K, s.top_k, rows & (s.top_k > 0)),
        (SamplerKind.TOP_P, s.top_p, rows & (s.top_p < 1)),
    ):
        table[is_set, _PLACES[kind], 0] = values[is_set]


def _in_default_order(kinds: Int32, owners: Int64, num_rows: int) -> Bool:
    places = _PLACES[kinds]
    follows = np.ones(len(kinds), np.bool_)
    follows[1:] = (places[1:] > places[:-1]) | (owners[1:] != owners[:-1])
    in_order = np.ones(num_rows, np.bool_)
    in_order[owners[(places < 0) | ~follows]] = False
    return in_order


def _with_limits_first(order: DrawOrder) -> DrawOrder:
    """top_k before a min_p that stands right before it: each keeps the first best first, so either may be first, and
    what is left of top_k is put in order at less cost.
    """
    kinds, values = list(order.kinds), order.values.copy()
    for i in range(len(kinds) - 1):
        if kinds[i : i + 2] == [SamplerKind.MIN_P, SamplerKind.TOP_K]:
            kinds[i : i + 2] = reversed(kinds[i : i + 2])
            values[:, i : i + 2] = values[:, i : i + 2][:, ::-1].copy()
    for i, kind in enumerate(kinds):
        if kind is SamplerKind.TOP_K:
            values[values[:, i, 0] <= 0, i, 0] = _ALL
    return DrawOrder(order.rows, tuple(kinds), values)


def upload_parts(
    sampling: SamplingArrays,
    allow_mask: UInt32 | None,
    rows: Int64,
    tile_rows: int,
    vocab_size: int,
    uploader: Uploader,
) -> dict[int, list[DrawPart]]:
    """The parts of each tile of `tile_rows` rows, by the tile's first row; `rows` ascend."""
    chosen = [p for order in draw_orders(sampling, rows) for p in _partitions(order, tile_rows, vocab_size)]
    arrays: dict[str, NDArray[Any]] = {}
    for i, part in enumerate(chosen):
        arrays |= {f"{i}.{name}": array for name, array in _arrays(sampling, allow_mask, part).items()}
    sent = uploader.upload(arrays) if arrays else {}
    parts: dict[int, list[DrawPart]] = {}
    for i, part in enumerate(chosen):
        mine = {name.split(".", 1)[1]: view for name, view in sent.items() if name.startswith(f"{i}.")}
        parts.setdefault(part.first, []).append(_part(sampling, part, mine))
    return parts


def _partitions(order: DrawOrder, tile_rows: int, vocab_size: int) -> Iterator[_Planned]:
    widths = _widths(order, vocab_size)
    size = max(1, PART_LOGITS // vocab_size)
    tiles = order.rows // tile_rows
    for tile in np.unique(tiles):
        for is_kind in (widths == 0, (widths > 0) & (widths < vocab_size), widths == vocab_size):
            mine = np.flatnonzero((tiles == tile) & is_kind)
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                yield _Planned(int(tile) * tile_rows, order.rows[part], order.kinds, order.values[part])


def _widths(order: DrawOrder, vocab_size: int) -> Int64:
    """[n] how many of the best candidates a row's samplers put in order."""
    k, needs_order = np.full(len(order.rows), _ALL), np.zeros(len(order.rows), np.bool_)
    for i, kind in enumerate(order.kinds):
        if kind is SamplerKind.TOP_K:
            k = np.minimum(k, order.values[:, i, 0])
        elif kind in _NEEDS_ORDER:
            needs_order |= _NEEDS_ORDER[kind](order.values[:, i])
    needs_order |= k < vocab_size
    return np.where(needs_order, np.where(k <= min(NARROW, vocab_size - 1), k, vocab_size), 0).astype(np.int64)


def _is_used(part: _Planned) -> list[bool]:
    """Of each step. Penalties and DRY are where there are entries for them."""
    neutral = [_DEFAULT.get(kind) for kind in part.kinds]
    is_sparse = [kind in (SamplerKind.PENALTIES, SamplerKind.DRY) for kind in part.kinds]
    return [
        sparse or off is None or bool((part.values[:, i] != off).any())
        for i, (off, sparse) in enumerate(zip(neutral, is_sparse, strict=True))
    ]


def _arrays(s: SamplingArrays, allow_mask: UInt32 | None, planned: _Planned) -> dict[str, NDArray[Any]]:
    """Four-byte elements; uniforms are halves of float64."""
    part = planned.rows
    arrays: dict[str, NDArray[Any]] = {"rows": (part - planned.first).astype(np.int32)}
    arrays["values"] = planned.values[:, _is_used(planned)]
    arrays["is_greedy"] = (s.temperature[part] == 0).astype(np.int32)
    arrays["state"] = s.sampler_state[part]
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        arrays[name] = getattr(s, name)[part]
    for name, purpose in (("u", PURPOSE_TOKEN), ("chance", PURPOSE_XTC)):
        # Here, because the host knows the counters: on the device these are a hundred launches for a few numbers.
        arrays[name] = uniforms(s.seed[part], s.position[part], s.sample_index[part], purpose).view(np.int32)
    for name, start, ids, values, wanted in (
        ("bias", s.bias_start, s.bias_ids, s.bias_values, np.ones(len(part), np.bool_)),
        ("history", s.history_start, s.history_ids, s.history_counts, _has(s, part, SamplerKind.PENALTIES)),
        ("dry", s.dry_start, s.dry_ids, s.dry_values, _has(s, part, SamplerKind.DRY)),
    ):
        owners, entries = _entries(start, part, wanted)
        arrays |= {f"{name}_rows": owners, f"{name}_ids": ids[entries], f"{name}_values": values[entries]}
    if allow_mask is not None:
        arrays["allow_mask"] = np.ascontiguousarray(allow_mask[part]).view(np.int32)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _has(s: SamplingArrays, part: Int64, kind: SamplerKind) -> Bool:
    """[n] whether a row runs this sampler; rows without a chain run the penalties."""
    lengths = np.diff(s.chain_start)
    found: Bool = (lengths == 0) & (kind is SamplerKind.PENALTIES)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    found[owners[s.chain_kinds[: len(owners)] == kind]] = True
    mine: Bool = found[part]
    return mine


def _counts_carried(s: SamplingArrays, part: Int64) -> bool:
    if not len(s.history_ids) or s.history_ids.min() >= 0:
        return False
    _, entries = _entries(s.history_start, part, np.ones(len(part), np.bool_))
    return bool((s.history_ids[entries] < 0).any())


def _entries(start: Int32, part: Int64, wanted: Bool) -> tuple[Int32, Int64]:
    """(Places in `part`, indices) of the entries of those of its rows that are wanted."""
    lengths = np.where(wanted, start[part + 1] - start[part], 0)
    owners = np.repeat(np.arange(len(part)), lengths)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owners.astype(np.int32), start[part][owners] + within


def _part(s: SamplingArrays, planned: _Planned, sent: Mapping[str, Tensor]) -> DrawPart:
    views = dict(sent)
    for name in ("u", "chance"):
        views[name] = views[name].view(torch.float64)
    used = [i for i, is_used in enumerate(_is_used(planned)) if is_used]
    values, most = views.pop("values"), planned.values.max(0)
    csr_names: ListLike[str] = ("bias", "history", "dry")
    return DrawPart(
        rows=views["rows"],
        steps=tuple(
            DrawStep(planned.kinds[i], values[:, place], (float(most[i, 0]), float(most[i, 1]), float(most[i, 2])))
            for place, i in enumerate(used)
        ),
        num_drawn=int((s.temperature[planned.rows] > 0).sum()),
        columns=views,
        csr={n: (views[f"{n}_rows"], views[f"{n}_ids"], views[f"{n}_values"]) for n in csr_names},
        allow_mask=views.get("allow_mask"),
        counts_carried=_counts_carried(s, planned.rows),
        has_carried=bool((s.sampler_state[planned.rows] == CARRIED_STATE).any()),
    )
