"""Checkpoint tensors to canonical weights: renamed, checked to be exactly those the spec implies, transformed.

Knows names, shapes and transforms; not the files the tensors come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tuili.errors import ModelFileError
from tuili.models.names import NameTable, is_ignored, leaf, rename
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor
from tuili.weights.tensor_table import TensorTable
from tuili.weights.transforms import TRANSFORMS

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
) -> Mapping[str, Tensor]:
    """The weights of `spec` by canonical name, each transformed when it is asked for.

    Raises ModelFileError naming the first few tensors that are missing, unknown or misshapen.
    """
    sources = _rename(tensors, conventions, file_name)
    shapes = tensor_shapes(spec)
    if spec.tie_word_embeddings and _HEAD in sources:
        _check_tied(tensors[sources.pop(_HEAD)], tensors.get(sources.get(_EMBEDDING, "")), file_name)
    if missing := shapes.keys() - sources.keys():
        raise ModelFileError(
            f"{file_name}: {_several(missing, 'is', 'are')} missing, {spec.family} needs all its weights"
        )
    if extra := sources.keys() - shapes.keys():
        names = _several((sources[name] for name in extra), "is", "are")
        raise ModelFileError(f"{file_name}: {names} no weight of this {spec.family}, others are not allowed")
    for name, shape in shapes.items():
        if (found := tensors[sources[name]].shape) != shape:
            raise ModelFileError(
                f"{file_name}: tensor {sources[name]} has shape {list(found)}, the configuration asks for {list(shape)}"
            )
    return TensorTable({name: _maker(tensors, sources[name], name, spec, conventions) for name in shapes})


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
            raise ModelFileError(f"{file_name}: {sources[canonical]} and {name} are the same weight, one is allowed")
        else:
            sources[canonical] = name
    if unknown:
        raise ModelFileError(f"{file_name}: {_several(unknown, 'is', 'are')} unknown to this model family")
    return sources


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
    tensors: Mapping[str, Tensor], source: str, name: str, spec: ModelSpec, conventions: Conventions
) -> Callable[[], Tensor]:
    transform = conventions.transforms.get(leaf(name))
    if transform is None:
        return lambda: tensors[source]
    apply = TRANSFORMS[transform]
    return lambda: apply(tensors[source], spec, name)
