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

NARROW = "Q4_K"  # the format of most files that people choose for being small


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

    def narrowed(self) -> Outline:
        """The same model with every matrix that is wider in NARROW, where its rows allow that."""
        return replace(self, stored={name: _narrowed(*weight) for name, weight in self.stored.items()})


def _narrowed(weight_format: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    narrow, given = quant.BY_NAME[NARROW], quant.BY_NAME[weight_format]
    cols = narrow.group_size
    is_wider = len(shape) == 2 and shape[1] % cols == 0 and given.row_bytes(shape[1]) > narrow.row_bytes(shape[1])
    return (NARROW if is_wider else weight_format), shape


@contextmanager
def open_outline(name: str, store: Store) -> Iterator[Outline]:
    """Raises what Store.resolve, a source and open_checkpoint raise; a remote model's headers go with the context."""
    try:
        path = None if is_url(name) else store.path(name)
    except ModelNotFoundError:
        if not _is_offered(name, store):
            raise
        path = None
    if path is not None:
        yield _outline(name, open_checkpoint(path), None)
        return
    traffic = Traffic()
    with tempfile.TemporaryDirectory() as folder:
        with files_at(name, traffic) if is_url(name) else store.offered_files(name, traffic) as files:
            path = write_headers(files, Path(folder))
        yield _outline(name, open_checkpoint(path), traffic.num_bytes)


def _is_offered(name: str, store: Store) -> bool:
    try:
        return not name.endswith(".gguf") and (store.knows(name) or parse_model_name(name).organization is not None)
    except InvalidRequestError:
        return False


def _outline(name: str, checkpoint: Checkpoint, num_fetched_bytes: int | None) -> Outline:
    shapes = tensor_shapes(checkpoint.spec)
    stored = {name: (checkpoint.weights.stored_format(name), shape) for name, shape in shapes.items()}
    return Outline(
        name=name,
        path=checkpoint.path,
        spec=checkpoint.spec,
        stored=stored,
        file_bytes=checkpoint.num_bytes,
        has_tokenizer=num_fetched_bytes is None or checkpoint.source == "gguf",
        num_fetched_bytes=num_fetched_bytes,
    )
