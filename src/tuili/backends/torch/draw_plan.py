"""What the device must know to choose rows in the default order, worked out on the host and sent in one copy.

Rows that need as many of the best candidates make a part: those of equal width are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuili.backend import Bool, Float32, Int32, Int64, SamplerKind, SamplingArrays, UInt32
from tuili.backends.torch.rng import PURPOSE_TOKEN, PURPOSE_XTC, uniforms
from tuili.backends.torch.step import Uploader

NARROW = 1024  # candidates that are found without a sort of all
_PART_LOGITS = 1 << 24  # drawn at one time: each takes some 60 bytes on the way
_OFF_MASS = 2.0  # a share that nothing reaches
_PLACES: Mapping[SamplerKind, int] = {
    kind: place
    for place, kind in enumerate(
        (
            SamplerKind.PENALTIES,
            SamplerKind.DRY,
            SamplerKind.TEMPERATURE,
            SamplerKind.TOP_N_SIGMA,
            SamplerKind.MIN_P,
            SamplerKind.TOP_K,
            SamplerKind.TYPICAL_P,
            SamplerKind.TOP_P,
            SamplerKind.XTC,
        )
    )
}
# Of each sampler: the names of its values, and those values where it is left out.
_COLUMNS: Mapping[SamplerKind, tuple[tuple[str, float], ...]] = {
    SamplerKind.PENALTIES: (),
    SamplerKind.DRY: (),
    SamplerKind.TEMPERATURE: (("temperature", 1.0), ("spread", 0.0), ("exponent", 1.0)),
    SamplerKind.TOP_N_SIGMA: (("num_sigmas", -1.0),),
    SamplerKind.MIN_P: (("min_p", 0.0), ("min_p_keep", 0.0)),
    SamplerKind.TOP_K: (("top_k", float(1 << 24)),),  # no vocabulary is larger
    SamplerKind.TYPICAL_P: (("typical_p", _OFF_MASS), ("typical_keep", 0.0)),
    SamplerKind.TOP_P: (("top_p", _OFF_MASS), ("top_p_keep", 0.0)),
    SamplerKind.XTC: (("xtc_probability", 0.0), ("xtc_threshold", 0.0), ("xtc_keep", 0.0)),
}
_OFF: Mapping[str, float] = {name: off for columns in _COLUMNS.values() for name, off in columns}


@dataclass(frozen=True, slots=True)
class DrawPart:
    """n rows of one tile, and the numbers of each on the device."""

    rows: Tensor  # int32 [n] within the tile
    width: int  # candidates to put in order, best first: 0, up to NARROW, or the vocabulary
    num_drawn: int  # rows that are more than the largest logit
    used: frozenset[str]  # columns that some row sets
    columns: Mapping[str, Tensor]  # float32 [n] by names of _COLUMNS; float64 uniforms "u" and "chance"
    csr: Mapping[str, tuple[Tensor, Tensor, Tensor]]  # bias, history, dry: rows int32, ids int32, values [entries]
    allow_mask: Tensor | None  # int32 [n, words]


@dataclass(frozen=True, slots=True)
class DrawRules:
    """Of all R rows: which run here, and their values."""

    sampling: SamplingArrays
    allow_mask: UInt32 | None
    columns: Mapping[str, Float32]  # [R]
    chained: Mapping[SamplerKind, Bool]  # [R]
    in_order: Bool  # [R] rows whose chain is in the default order


def draw_rules(sampling: SamplingArrays, allow_mask: UInt32 | None) -> DrawRules:
    """Rows without a chain stand in the same columns as those with one."""
    num_rows = len(sampling.temperature)
    columns = {name: np.full(num_rows, off, np.float32) for name, off in _OFF.items()}
    lengths = np.diff(sampling.chain_start)
    owners = np.repeat(np.arange(num_rows), lengths)
    kinds = sampling.chain_kinds[: len(owners)]
    chained = {kind: np.zeros(num_rows, np.bool_) for kind in _PLACES}
    for kind, is_in in chained.items():
        is_step = kinds == kind
        is_in[owners[is_step]] = True
        for (name, _), values in zip(_COLUMNS[kind], sampling.chain_values[: len(owners)][is_step].T, strict=False):
            columns[name][owners[is_step]] = values
    columns["top_k"][columns["top_k"] <= 0] = _OFF["top_k"]
    plain = lengths == 0
    chained[SamplerKind.PENALTIES] |= plain
    _fill_plain(columns, sampling, plain & (sampling.temperature > 0))
    return DrawRules(sampling, allow_mask, columns, chained, _in_default_order(kinds, owners, num_rows))


def _fill_plain(columns: Mapping[str, Float32], s: SamplingArrays, rows: Bool) -> None:
    columns["temperature"][rows] = s.temperature[rows]
    columns["min_p"][rows] = s.min_p[rows]
    limited = rows & (s.top_k > 0)
    columns["top_k"][limited] = s.top_k[limited]
    limited = rows & (s.top_p < 1)
    columns["top_p"][limited] = s.top_p[limited]


def _in_default_order(kinds: Int32, owners: Int64, num_rows: int) -> Bool:
    places = np.array([_PLACES.get(SamplerKind(kind), -1) for kind in range(len(SamplerKind))])[kinds]
    follows = np.ones(len(kinds), np.bool_)
    follows[1:] = (places[1:] > places[:-1]) | (owners[1:] != owners[:-1])
    in_order = np.ones(num_rows, np.bool_)
    in_order[owners[(places < 0) | ~follows]] = False
    return in_order


def upload_parts(
    rules: DrawRules, rows: Int64, tile_rows: int, vocab_size: int, uploader: Uploader
) -> dict[int, list[DrawPart]]:
    """The parts of each tile of `tile_rows` rows, by the tile's first row; `rows` ascend."""
    chosen = list(_partitions(rules, rows, tile_rows, vocab_size))
    arrays: dict[str, NDArray[Any]] = {}
    for i, (first, _, part) in enumerate(chosen):
        arrays |= {f"{i}.{name}": array for name, array in _arrays(rules, part, first).items()}
    sent = uploader.upload(arrays) if arrays else {}
    parts: dict[int, list[DrawPart]] = {}
    for i, (first, width, part) in enumerate(chosen):
        mine = {name.split(".", 1)[1]: view for name, view in sent.items() if name.startswith(f"{i}.")}
        parts.setdefault(first, []).append(_part(rules, part, width, mine))
    return parts


def _partitions(rules: DrawRules, rows: Int64, tile_rows: int, vocab_size: int) -> Iterator[tuple[int, int, Int64]]:
    """(First row of the tile, width, rows)."""
    widths = _widths(rules, vocab_size)
    size = max(1, _PART_LOGITS // vocab_size)
    tiles = rows // tile_rows
    for tile in np.unique(tiles):
        for is_kind in (widths == 0, (widths > 0) & (widths < vocab_size), widths == vocab_size):
            mine = rows[(tiles == tile) & is_kind[rows]]
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                yield int(tile) * tile_rows, int(widths[part].max()), part


def _widths(rules: DrawRules, vocab_size: int) -> Int64:
    """[R] how many of the best candidates a row's samplers look at."""
    c = rules.columns
    needs_order = (c["typical_p"] < _OFF_MASS) | (c["top_p"] < _OFF_MASS) | (c["xtc_probability"] > 0)
    needs_order |= (c["top_k"] < vocab_size) | (c["min_p_keep"] > 1)
    k = c["top_k"].astype(np.int64)
    return np.where(needs_order, np.where(k <= min(NARROW, vocab_size - 1), np.maximum(k, 1), vocab_size), 0)


def _arrays(rules: DrawRules, part: Int64, first: int) -> dict[str, NDArray[Any]]:
    """Four-byte elements; uniforms are halves of float64."""
    s = rules.sampling
    arrays: dict[str, NDArray[Any]] = {"rows": (part - first).astype(np.int32)}
    arrays |= {name: column[part] for name, column in rules.columns.items()}
    arrays["is_greedy"] = (s.temperature[part] == 0).astype(np.int32)
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        arrays[name] = getattr(s, name)[part]
    seeds, positions, sample_indexes = (
        torch.from_numpy(counter[part].astype(np.int64))  # wraps
        for counter in (s.seed, s.position, s.sample_index)
    )
    for name, purpose in (("u", PURPOSE_TOKEN), ("chance", PURPOSE_XTC)):
        # Here, because the host knows the counters: on the device these are a hundred launches for a few numbers.
        arrays[name] = uniforms(seeds, positions, sample_indexes, purpose).numpy().view(np.int32)
    everywhere = np.ones(len(s.temperature), np.bool_)
    for name, start, ids, values, wanted in (
        ("bias", s.bias_start, s.bias_ids, s.bias_values, everywhere),
        ("history", s.history_start, s.history_ids, s.history_counts, rules.chained[SamplerKind.PENALTIES]),
        ("dry", s.dry_start, s.dry_ids, s.dry_values, rules.chained[SamplerKind.DRY]),
    ):
        owners, entries = _entries(start, part, wanted)
        arrays |= {f"{name}_rows": owners, f"{name}_ids": ids[entries], f"{name}_values": values[entries]}
    if rules.allow_mask is not None:
        arrays["allow_mask"] = np.ascontiguousarray(rules.allow_mask[part]).view(np.int32)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _entries(start: Int32, part: Int64, wanted: Bool) -> tuple[Int32, Int64]:
    """(Places in `part`, indices) of the entries of those of its rows that are wanted."""
    lengths = np.where(wanted[part], start[part + 1] - start[part], 0)
    owners = np.repeat(np.arange(len(part)), lengths)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owners.astype(np.int32), start[part][owners] + within


def _part(rules: DrawRules, part: Int64, width: int, sent: Mapping[str, Tensor]) -> DrawPart:
    views = dict(sent)
    for name in ("u", "chance"):
        views[name] = views[name].view(torch.float64)
    csr_names: ListLike[str] = ("bias", "history", "dry")
    return DrawPart(
        rows=views["rows"],
        width=width,
        num_drawn=int((rules.sampling.temperature[part] > 0).sum()),
        used=frozenset(name for name, off in _OFF.items() if (rules.columns[name][part] != off).any()),
        columns=views,
        csr={n: (views[f"{n}_rows"], views[f"{n}_ids"], views[f"{n}_values"]) for n in csr_names},
        allow_mask=views.get("allow_mask"),
    )
