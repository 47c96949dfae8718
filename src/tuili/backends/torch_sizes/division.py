"""Who has what of a model that several processes share: numbers from a spec. Knows no processes and reads no values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import lcm

from tuili.checks import refusal
from tuili.errors import UnsupportedModelError
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec

_ROWS = 64  # that are dealt out together where there are enough: products like such widths

GroupSize = Callable[[str], int]  # weight -> weights of a row that its format keeps together
Cut = tuple[int, range]  # the axis, and what is left of it


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """What a process has of a layer: heads that lie side by side, and rows of the MLP."""

    heads: range
    kv_heads: range
    inner: range
    num_heads: int  # of all processes
    num_kv_heads: int
    counts_keys: bool  # false where another process has the same key-value head and comes first


@dataclass(frozen=True, slots=True)
class Division:
    """The part of one of `size` processes."""

    rank: int
    layers: tuple[LayerShare, ...]
    vocab: tuple[range, ...]  # of each process


def span(total: int, size: int, rank: int, unit: int = 1) -> range:
    """The part of [0, total) that `rank` gets: whole units, the last of which may be cut, more for the first ranks."""
    count = -(-total // unit)
    share, more = divmod(count, size)
    start = rank * share + min(rank, more)
    end = start + share + (rank < more)
    return range(min(start * unit, total), min(end * unit, total))


def divide(spec: ModelSpec, rank: int, size: int, group_size: GroupSize) -> Division:
    """Heads and rows that `rank` has. Columns are cut where groups of their format begin, as far as that can be.

    Raises what check_divisible raises.
    """
    check_divisible(spec, size)
    layers = tuple(
        _layer(layer, rank, size, lambda leaf, i=i: group_size(f"layers.{i}.{leaf}.weight"))  # type: ignore[misc]
        for i, layer in enumerate(spec.layers)
    )
    unit = _ROWS if spec.vocab_size >= size * _ROWS else 1
    return Division(rank, layers, tuple(span(spec.vocab_size, size, r, unit) for r in range(size)))


def check_divisible(spec: ModelSpec, size: int) -> None:
    """Raises InvalidRequestError for more processes than can share a layer, UnsupportedModelError for what has none."""
    for layer in spec.layers:
        if not isinstance(layer.mixer, AttentionSpec) or not isinstance(layer.mlp, MlpSpec):
            kind = type(layer.mixer if not isinstance(layer.mixer, AttentionSpec) else layer.mlp).__name__
            raise UnsupportedModelError(f"{spec.family}: {kind} cannot be shared by {size} processes")
        a = layer.mixer
        most = min(a.num_heads, layer.mlp.intermediate_size)
        if size > most:
            raise refusal(
                "tensor_parallel_size", size, f"at most {most}, as a layer of the model has {a.num_heads} heads"
            )


def _layer(layer: LayerSpec, rank: int, size: int, group_size: Callable[[str], int]) -> LayerShare:
    a, m = layer.mixer, layer.mlp
    assert isinstance(a, AttentionSpec)
    assert isinstance(m, MlpSpec)
    heads, kv_heads, counts_keys = _heads(a, rank, size, group_size("o_proj"))
    return LayerShare(
        heads=heads,
        kv_heads=kv_heads,
        inner=span(m.intermediate_size, size, rank, _unit(m.intermediate_size, size, group_size("down_proj"))),
        num_heads=a.num_heads,
        num_kv_heads=a.num_kv_heads,
        counts_keys=counts_keys,
    )


def _unit(total: int, size: int, group: int) -> int:
    """Rows dealt out together: a group's, more where there are plenty; single ones where there are too few groups."""
    return next((unit for unit in (lcm(group, _ROWS), group) if total >= unit * size), 1)


def _heads(a: AttentionSpec, rank: int, size: int, group: int) -> tuple[range, range, bool]:
    """Query heads, key-value heads, and whether the latter count here.

    Each key-value head goes with its query heads. Where there are fewer than processes, several have the same one and
    share its query heads.
    """
    num_kv, per_kv = a.num_kv_heads, a.num_heads // a.num_kv_heads
    if num_kv >= size:
        together = lcm(group, per_kv * a.head_dim) // (per_kv * a.head_dim)  # whose columns are whole groups
        kv = span(num_kv, size, rank, together if num_kv >= size * together else 1)
        return range(kv.start * per_kv, kv.stop * per_kv), kv, True
    owners = [span(size, num_kv, head) for head in range(num_kv)]
    head = next(i for i, ranks in enumerate(owners) if rank in ranks)
    place, count = rank - owners[head].start, len(owners[head])
    together = lcm(group, a.head_dim) // a.head_dim
    own = span(per_kv, count, place, together if per_kv >= count * together else 1)
    first = head * per_kv
    return range(first + own.start, first + own.stop), range(head, head + 1), place == 0


def own_spec(spec: ModelSpec, division: Division) -> ModelSpec:
    """The spec of the part alone: its weights are shaped as tensor_shapes says of it."""
    layers = tuple(_own_layer(layer, share) for layer, share in zip(spec.layers, division.layers, strict=True))
    return replace(spec, layers=layers, vocab_size=len(division.vocab[division.rank]))


def _own_layer(layer: LayerSpec, share: LayerShare) -> LayerSpec:
    assert isinstance(layer.mixer, AttentionSpec)
    assert isinstance(layer.mlp, MlpSpec)
    mixer = replace(layer.mixer, num_heads=len(share.heads), num_kv_heads=len(share.kv_heads))
    return replace(layer, mixer=mixer, mlp=replace(layer.mlp, intermediate_size=len(share.inner)))


def cuts(spec: ModelSpec, division: Division) -> Mapping[str, Cut]:
    """Of the weights of `spec` that are dealt out; all others are everybody's."""
    found: dict[str, Cut] = {}
    vocab = division.vocab[division.rank]
    for name in ("embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
        found[name] = (0, vocab)
    for i, (layer, share) in enumerate(zip(spec.layers, division.layers, strict=True)):
        found |= {f"layers.{i}.{name}": cut for name, cut in _layer_cuts(layer, share).items()}
    return found


def _layer_cuts(layer: LayerSpec, share: LayerShare) -> dict[str, Cut]:
    a = layer.mixer
    assert isinstance(a, AttentionSpec)
    query_rows, key_rows = (_times(heads, a.head_dim) for heads in (share.heads, share.kv_heads))
    rows = {
        "q_proj": query_rows,
        "k_proj": key_rows,
        "v_proj": key_rows,
        "gate_proj": share.inner,
        "up_proj": share.inner,
    }
    found: dict[str, Cut] = {"o_proj.weight": (1, query_rows), "down_proj.weight": (1, share.inner)}
    for name, own in rows.items():
        found |= {f"{name}.weight": (0, own), f"{name}.bias": (0, own)}
    found["sinks.weight"] = (0, share.heads)
    if a.qk_norm == "each_head":
        found |= {"q_norm.weight": (0, share.heads), "k_norm.weight": (0, share.kv_heads)}
    elif a.qk_norm == "full":
        found |= {"q_norm.weight": (0, query_rows), "k_norm.weight": (0, key_rows)}
    return found


def _times(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)
