"""A model as its headers describe it: a stored name, a path, a name some source offers, or a URL.

Reads no weight and fetches none; where the files are elsewhere, their headers come in ranges.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tuili import quant
from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import ModelSpec
from tuili.runtime.plan.remote import files_at, is_url, write_headers
from tuili.store.names import parse_model_name
from tuili.store.offered import Traffic
from tuili.store.store import Store
from tuili.weights.checkpoint import Checkpoint, open_checkpoint
from tuili.weights.quantizing import check_quantizable, target_format
from tuili.weights.recipes import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """What headers say.

    stored: weight -> format name and shape, as the files hold it.
    num_fetched_bytes: None where the files are on this machine.
    has_tokenizer: whether a tokenizer can be made from what is at `path`.
    """

    name: str
    path: Path
    spec: ModelSpec
    stored: dict[str, tuple[str, tuple[int, ...]]]
    file_bytes: int
    has_tokenizer: bool
    num_fetched_bytes: int | None = None

    def quantized(self, recipe: Recipe) -> Outline:
        """The same model as it is loaded with that recipe."""

        def run_as(name: str, weight_format: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
            return target_format(quant.BY_NAME[weight_format], shape, recipe, name, self.spec).name, shape

        return replace(self, stored={name: run_as(name, *weight) for name, weight in self.stored.items()})


@contextmanager
def open_outline(name: str, store: Store, recipe: Recipe | None = None) -> Iterator[Outline]:
    """The model as it is loaded, quantized where there is a recipe; a remote model's headers go with the context.

    Raises what Store.resolve, a source, open_checkpoint and check_quantizable raise.
    """
    try:
        path = None if is_url(name) else store.path(name)
    except ModelNotFoundError:
        if not _is_offered(store.base_name(name), store):
            raise
        path = None
    if path is not None:
        yield outline_of(name, open_checkpoint(path), recipe)
        return
    traffic = Traffic()
    with tempfile.TemporaryDirectory() as folder:
        with files_at(name, traffic) if is_url(name) else store.offered_files(store.base_name(name), traffic) as files:
            path = write_headers(files, Path(folder))
        yield outline_of(name, open_checkpoint(path), recipe, traffic.num_bytes)


def _is_offered(name: str, store: Store) -> bool:
    try:
        return not name.endswith(".gguf") and (store.knows(name) or parse_model_name(name).organization is not None)
    except InvalidRequestError:
        return False


def outline_of(
    name: str, checkpoint: Checkpoint, recipe: Recipe | None = None, num_fetched_bytes: int | None = None
) -> Outline:
    """The model of an open checkpoint as it is loaded. Raises what check_quantizable raises."""
    shapes = tensor_shapes(checkpoint.spec)
    stored = {name: (checkpoint.weights.stored_format(name), shape) for name, shape in shapes.items()}
    found = Outline(
        name=name,
        path=checkpoint.path,
        spec=checkpoint.spec,
        stored=stored,
        file_bytes=checkpoint.num_bytes,
        has_tokenizer=num_fetched_bytes is None or checkpoint.source == "gguf",
        num_fetched_bytes=num_fetched_bytes,
    )
    if recipe is None:
        return found
    check_quantizable(checkpoint.weights, checkpoint.spec, recipe)
    return found.quantized(recipe)
