"""Our dataclasses against the standard library's: the same class, but for the time that making it takes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tuili.dataclass import dataclass
from tuili.sampling_params import SamplingParams

KINDS: list[dict[str, bool]] = [
    {},
    {"frozen": True},
    {"slots": True},
    {"slots": True, "eq": False},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "kw_only": True},
    {"frozen": True, "slots": True, "weakref_slot": True},
]


@dataclass(frozen=True, slots=True)
class Kept:
    """Found again by its name, as pickle wants it."""

    number: int
    names: list[str] = dataclasses.field(default_factory=list)


def classes(decorator: Callable[..., Any], kind: dict[str, bool]) -> tuple[type[Any], type[Any]]:
    @decorator(**kind)
    class Base:
        number: int
        text: str = "t"
        values: list[int] = dataclasses.field(default_factory=list, compare=False)

    @decorator(**kind)
    class Derived(Base):
        secret: str = dataclasses.field(default="s", repr=False)
        twice: int = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError(self.number)
            object.__setattr__(self, "twice", 2 * self.number)

    return Base, Derived


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind) or "plain")
def test_a_class_behaves_as_the_standard_library_s(kind: dict[str, bool]) -> None:
    found, expected = (behaviour(classes(decorator, kind)) for decorator in (dataclass, dataclasses.dataclass))
    assert found == expected


def behaviour(made: tuple[type[Any], type[Any]]) -> list[object]:
    """What can be told of the classes from outside."""
    base, derived = made
    one, same, other = derived(number=1, values=[1]), derived(number=1, values=[2]), derived(number=2)
    return [
        *(str(inspect.signature(cls)) for cls in made),
        [f.name for f in dataclasses.fields(derived)],
        derived.__match_args__,
        hasattr(one, "__dict__"),
        repr(one).rpartition(".")[2],
        (one == same, one != other, one == base(number=1), one == 1),
        outcome(lambda: hash(one) == hash(same)),
        one.values is not other.values,
        outcome(lambda: setattr(one, "text", "u")),
        outcome(lambda: delattr(other, "text")),
        outcome(lambda: derived(number=-1)),
        outcome(lambda: derived(nothing=1)).partition("__init__")[2],
        outcome(lambda: dataclasses.replace(same, text="v").text),
        sorted(dataclasses.asdict(same)),
        copy.deepcopy(same).values,
    ]


def outcome(act: Callable[[], object]) -> str:
    try:
        return repr(act())
    except (AttributeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def test_instances_can_be_pickled() -> None:
    kept = Kept(1, ["a"])
    assert pickle.loads(pickle.dumps(kept)) == kept
    assert Kept(1) != Kept(2)


def test_a_method_of_the_class_s_own_stays() -> None:
    @dataclass(frozen=True)
    class Own:
        number: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    assert (repr(Own(1)), Own(1) == Own(2), hash(Own(3))) == ("own", True, 7)


def test_arguments_are_told_by_name_and_type() -> None:
    parameters = inspect.signature(SamplingParams).parameters
    assert parameters["temperature"].annotation == "float"
    assert set(parameters) == {f.name for f in dataclasses.fields(SamplingParams)}
