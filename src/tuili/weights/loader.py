"""Checkpoint tensors to canonical weights: renamed, checked to be exactly those the spec implies, transformed.

Knows names, shapes and transforms; not the files the tensors come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.names import NameTable, is_ignored, leaf, rename
from tuili.models.shapes import Shape, tensor_shapes
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor
from tuili.weights.sources import Source, find_sources
from tuili.weights.tensor_table import TensorTable
from tuili.weights.transforms import TRANSFORMS, TRANSPOSE

_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_NUM_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Conventions:
    """How a family's checkpoints of one kind name and lay out what canonical weights hold."""

    names: NameTable
    transforms: Mapping[str, str]  # leaf name -> name of the transform
    ignored: tuple[str, ...]  # prefixes and suffixes of tensors that are no weights


def canonical_weights(
    tensors: Mapping[str, Tensor], spec: ModelSpec, conventions: Conventions, file_name: str
) -> TensorTable:
    """The weights of `spec` by canonical name, each transformed when it is asked for.

    Raises ModelFileError naming the first few tensors that are missing, unknown or misshapen, UnsupportedModelError
    for a quantized vector that would have to be split.
    """
    shapes = tensor_shapes(spec)
    sources = _sources(tensors, spec, conventions, file_name)
    if spec.tie_word_embeddings and _HEAD in sources:
        embedding = sources.get(_EMBEDDING)
        head = tensors[sources.pop(_HEAD).names[0]]
        _check_tied(head, tensors[embedding.names[0]] if embedding is not None else None, file_name)
    if missing := shapes.keys() - sources.keys():
        raise ModelFileError(
            f"{file_name}: {_several(missing, 'is', 'are')} missing, {spec.family} needs all its weights"
        )
    if extra := sources.keys() - shapes.keys():
        names = _several((name for weight in extra for name in sources[weight].names), "is", "are")
        raise ModelFileError(f"{file_name}: {names} no weight of this {spec.family}, others are not allowed")
    for name, shape in shapes.items():
        _check_shape(tensors, sources[name], shape, file_name)
        _check_format(tensors, sources[name], shape, file_name)
    return TensorTable(
        {name: _maker(tensors, sources[name], name, shape, spec, conventions) for name, shape in shapes.items()},
        {name: partial(_format_name, tensors, sources[name].names[0]) for name in shapes},
    )


def _format_name(tensors: Mapping[str, Tensor], name: str) -> str:
    return tensors[name].format.name


def left_out(tensors: Iterable[str], conventions: Conventions) -> tuple[str, ...]:
    """The tensors of parts that are not run, as of a vision tower: those whose names begin with one of `ignored`."""
    return tuple(name for name in tensors if name.startswith(conventions.ignored))


def _sources(
    tensors: Mapping[str, Tensor], spec: ModelSpec, conventions: Conventions, file_name: str
) -> dict[str, Source]:
    named = _rename(tensors, conventions, file_name)
    transposed = frozenset(leaf for leaf, name in conventions.transforms.items() if name == TRANSPOSE)
    sources: dict[str, Source] = {}
    for name, source in find_sources(named, spec, transposed):
        if name in sources:
            raise _twice(file_name, sources[name].names[0], source.names[0])
        sources[name] = source
    return sources


def _check_shape(tensors: Mapping[str, Tensor], source: Source, shape: Shape, file_name: str) -> None:
    expected, count = source.whole_shape(shape), len(source.names)
    for name in source.names:
        if (found := tensors[name].shape) != expected:
            raise ModelFileError(
                f"{file_name}: tensor {name} has shape {list(found)}, the configuration asks for {list(expected)}"
            )
    if source.is_stacked and count != shape[0]:
        raise ModelFileError(f"{file_name}: {source.names[0]} and {count - 1} more, {shape[0]} of them are expected")


def _check_format(tensors: Mapping[str, Tensor], source: Source, shape: Shape, file_name: str) -> None:
    if len({tensors[name].format.name for name in source.names}) > 1:
        raise ModelFileError(f"{file_name}: {source.names[0]} and its like have several dtypes, one is expected")
    first = source.names[0]
    if source.moves_elements(shape) and (found := tensors[first].format).group_size > 1:
        raise UnsupportedModelError(
            f"{file_name}: {first} is a vector in {found.name}, only unquantized ones can be split or put together"
        )


def _rename(tensors: Mapping[str, Tensor], conventions: Conventions, file_name: str) -> dict[str, str]:
    """Canonical name -> name in the checkpoint."""
    sources: dict[str, str] = {}
    unknown = []
    for name in tensors:
        if is_ignored(name, conventions.ignored):
            continue
        canonical = rename(name, conventions.names)
        if canonical is None:
            unknown.append(name)
        elif canonical in sources:
            raise _twice(file_name, sources[canonical], name)
        else:
            sources[canonical] = name
    if unknown:
        raise ModelFileError(f"{file_name}: {_several(unknown, 'is', 'are')} unknown to this model family")
    return sources


def _twice(file_name: str, first: str, second: str) -> ModelFileError:
    return ModelFileError(f"{file_name}: {first} and {second} are the same weight, one is allowed")


def _check_tied(head: Tensor, embedding: Tensor | None, file_name: str) -> None:
    """A tied head may be stored too, if it is the same; which one to believe would be a guess otherwise."""
    is_same = (
        embedding is not None
        and (head.format, head.shape) == (embedding.format, embedding.shape)
        and np.array_equal(head.data, embedding.data)
    )
    if not is_same:
        raise ModelFileError(
            f"{file_name}: {_HEAD} differs from the embedding, tie_word_embeddings allows only an equal copy"
        )


def _several(names: Iterable[str], singular: str, plural: str) -> str:
    """ "a, b and 3 more tensors are"."""
    ordered = sorted(names)
    shown, rest = ", ".join(ordered[:_NUM_SHOWN]), len(ordered) - _NUM_SHOWN
    return f"{shown} {singular if len(ordered) == 1 else plural}" if rest <= 0 else f"{shown} and {rest} more {plural}"


def _maker(
    tensors: Mapping[str, Tensor],
    source: Source,
    name: str,
    shape: Shape,
    spec: ModelSpec,
    conventions: Conventions,
) -> Callable[[], Tensor]:
    transform = conventions.transforms.get(leaf(name), TRANSPOSE)
    if transform == TRANSPOSE:
        return lambda: source.read(tensors, shape)
    apply = TRANSFORMS[transform]
    return lambda: apply(source.read(tensors, shape), spec, name)
