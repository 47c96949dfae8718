"""Which model a request's name means: those named at start, by their text or their served names, and those stored.

A path in a request is never opened: it is compared with what was named at start, as text.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuili.checks import shown
from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.runtime.pool.settings import NamedModel
from tuili.store.names import parse_model_name
from tuili.store.store import Store, existing_path

MAX_LISTED = 20
MAX_COMPARED = 256  # names, to find the nearest: comparing takes long


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """A model that may be asked for. `source` is what the store resolves; it is one model's alone.

    It may be a path, which clients are not shown.
    """

    source: str
    name: str
    aliases: tuple[str, ...] = ()
    is_named: bool = False


class ServedNames:
    """Names over a store. With only_named, no others than those of `named` are known; with allow_pull, also any that
    the store knows a source of.
    """

    def __init__(self, named: Sequence[NamedModel], store: Store, *, only_named: bool, allow_pull: bool) -> None:
        """Raises InvalidRequestError when one name is given to two models."""
        self._store, self._only_named, self._allow_pull = store, only_named, allow_pull
        self.named = tuple(_known(model, store) for model in named)
        self._by_name: dict[str, KnownModel] = {}
        for model in self.named:
            for name in dict.fromkeys((model.name, *model.aliases, model.source)):
                if self._by_name.setdefault(name, model) is not model:
                    raise InvalidRequestError(f"the name {name!r} is given to two models", param="served_model_name")

    @property
    def default(self) -> str | None:
        """The model meant where none is named: the first named at start, else the only one stored."""
        if self.named:
            return self.named[0].name
        stored = self._store.sole()
        return None if stored is None else stored.name

    @property
    def given(self) -> Collection[str]:
        """Names of the models named at start."""
        return self._by_name.keys()

    def find(self, name: str) -> KnownModel:
        """Raises ModelNotFoundError with the names nearest to it."""
        if name in self._by_name:
            return self._by_name[name]
        try:
            full = self._store.full_name(name)
            if full in self._by_name:
                return self._by_name[full]
            if not self._only_named and (self._store.has(full) or (self._allow_pull and self._is_offered(full))):
                return KnownModel(source=full, name=full)
        except InvalidRequestError:  # no name at all
            pass
        raise ModelNotFoundError(f"model {shown(name)} does not exist here: {self._hint(name)}")

    def all(self) -> list[KnownModel]:
        """Every model that may be asked for and is here, those named at start first."""
        stored = [] if self._only_named else [files.name for files in self._store.list()]
        taken = {model.source for model in self.named}
        return [*self.named, *(KnownModel(source=name, name=name) for name in stored if name not in taken)]

    def _is_offered(self, name: str) -> bool:
        return self._store.knows(name) or parse_model_name(name).organization is not None

    def _hint(self, name: str) -> str:
        names = [name for model in self.named for name in (model.name, *model.aliases)]
        if not self._only_named:
            names += [files.name for files in self._store.list() if files.name not in self._by_name]
            if self._store.knows(name):
                return f"fetch it with `tuili pull {self._store.full_name(name)}`"
        written = {full.split(":")[0]: full for full in names} | dict(zip(names, names, strict=True))
        like = heapq.nsmallest(MAX_COMPARED, written, lambda text: abs(len(text) - len(name)))
        close = difflib.get_close_matches(name[:200], like, 1, 0.6)
        if close:
            return f"did you mean {written[close[0]]!r}?"
        return f"there are {', '.join(names[:MAX_LISTED])}" if names else "no model is stored"


def _known(model: NamedModel, store: Store) -> KnownModel:
    """A model named at start. A path is shown by its last part, and found by the whole text too."""
    text = model.model
    is_path = not (store.has(text) or store.knows(text)) and existing_path(text) is not None
    own = _last_part(text) if is_path else _full_name(text, store)
    name, *aliases = dict.fromkeys((*model.served_names, own))
    return KnownModel(source=text if is_path else own, name=name, aliases=tuple(aliases), is_named=True)


def _full_name(text: str, store: Store) -> str:
    """The stored model's name; a path that is not there keeps its text, which loading then tells."""
    try:
        return store.full_name(text)
    except InvalidRequestError:
        return text


def _last_part(path: str) -> str:
    """Of a path as it is written: what links point to is named for machines."""
    name = Path(path).expanduser().name
    name = name if name not in ("", "..") else Path(path).resolve().name
    return name.removesuffix(".gguf").removesuffix(".modelfile")
