"""`dataclass` as the standard library's, made in a fifth of its time, which is most of what importing tuili takes.

Up to Python 3.12 that one compiles six functions for each class. Here `__init__` alone is compiled; the others are the
same for every class and read its fields. All else (inheritance, slots, `fields`, `replace`) is the standard library's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, Field, FrozenInstanceError
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass

_Class = TypeVar("_Class", bound=type)


class _Unset:
    """Stands for an argument that its factory makes."""

    def __repr__(self) -> str:
        return "<factory>"


_UNSET = _Unset()


def _dataclass(
    cls: type | None = None, /, *, frozen: bool = False, eq: bool = True, **layout: bool
) -> Callable[[type], type] | type:
    """The decorator; `layout` is slots, weakref_slot and kw_only."""

    def make(cls: type) -> type:
        _add_methods(cls, frozen=frozen, eq=eq)
        made: Any = dataclasses.dataclass(cls, init=False, repr=False, eq=False, **layout)
        compared = [f.name for f in dataclasses.fields(made) if f.compare]
        made._compared = attrgetter(*compared, "__class__")  # of one field, too, it gives a tuple
        if "__init__" not in cls.__dict__:
            made.__init__ = _make_init(made, frozen=frozen)
        return made  # type: ignore[no-any-return]

    return make if cls is None else make(cls)


def _add_methods(cls: Any, *, frozen: bool, eq: bool) -> None:
    """All but `__init__`, each unless the class has its own, before slots make it another class."""
    methods: dict[str, Any] = {"__repr__": _repr}
    has_hash = cls.__dict__.get("__hash__") is not None
    if eq:
        methods["__eq__"] = _eq
        if not has_hash:
            cls.__hash__ = _hash if frozen else None
    if frozen:
        methods |= {"__setattr__": _refuse_assignment, "__delattr__": _refuse_deletion}
        methods |= {"__getstate__": _state, "__setstate__": _set_state}
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(cls, name, method)


def _make_init(cls: Any, *, frozen: bool) -> Callable[..., None]:
    fields = dataclasses.fields(cls)
    assert all(f.init or f.default is f.default_factory is MISSING for f in fields), "a default that is no argument's"
    arguments = [f for f in fields if f.init]  # __post_init__ sets the others
    known: dict[str, Any] = {"_UNSET": _UNSET, "_set": object.__setattr__}
    positional = [_parameter(f, known) for f in arguments if not f.kw_only]
    by_name = [_parameter(f, known) for f in arguments if f.kw_only]
    parameters = ["self", *positional, *(["*", *by_name] if by_name else [])]
    values = {f.name: _value(f) for f in arguments}
    lines = [f"_set(self, {n!r}, {value})" if frozen else f"self.{n} = {value}" for n, value in values.items()]
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines or ["pass"]), known)
    init: Callable[..., None] = known["__init__"]
    init.__qualname__, init.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    init.__annotations__ = {f.name: f.type for f in arguments} | {"return": None}
    return init


def _parameter(field: Field[Any], known: dict[str, Any]) -> str:
    """How the signature has the field; its default or factory is put among the `known`."""
    if field.default is not MISSING:
        known[f"_default_{field.name}"] = field.default
        return f"{field.name}=_default_{field.name}"
    if field.default_factory is not MISSING:
        known[f"_make_{field.name}"] = field.default_factory
        return f"{field.name}=_UNSET"
    return field.name


def _value(field: Field[Any]) -> str:
    """What the field is set to, of the arguments."""
    name = field.name
    return name if field.default_factory is MISSING else f"_make_{name}() if {name} is _UNSET else {name}"


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self._compared(self) == self._compared(other)


def _hash(self: Any) -> int:
    return hash(self._compared(self))


def _refuse_assignment(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deletion(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for f, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, f.name, value)


if not TYPE_CHECKING:
    dataclass = _dataclass
