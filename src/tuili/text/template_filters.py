"""The filters and tests of chat templates, each bounded and each keeping the marks of PromptText.

Text filters are written here; those that only pass values on are jinja's, wrapped to pay for their arguments.
What a chat template has no use for (urlize, pprint, random, attr ...) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import pass_context
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context
from jinja2.tests import TESTS

from tuili.text.prompt_text import PromptText, SafeText
from tuili.text.template_budget import BoundExceededError, Budget, Counted, size

BUDGET = " budget"  # no template can spell this name
MAX_COUNT = 10_000

_PASSED = (
    "abs", "batch", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map",
    "reject", "rejectattr", "reverse", "round", "select", "selectattr", "slice", "truncate", "wordcount",
)  # fmt: skip
_COMPARING = ("dictsort", "groupby", "max", "min", "sort", "unique")  # pay for all their values hold
_COUNTS = frozenset({"batch", "round", "slice"})  # an integer argument is work or memory
_DEEP_TESTS = frozenset({"==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt", "greaterthan",
                         ">=", "ge", "in", "lower", "upper"})  # fmt: skip


def budget_of(context: Context) -> Budget:
    """The allowance of the rendering that is going on."""
    budget: Budget = context.parent[BUDGET]
    return budget


def to_text(budget: Budget, value: object) -> str:
    """What a template prints for a value."""
    if isinstance(value, str):
        budget.spend(size(value))
        return str(value)
    is_outside = budget.spend_deep(value)
    text = str(value)
    return PromptText.outside(text) if is_outside else text


def join_text(budget: Budget, parts: Iterable[object], separator: str = "") -> PromptText:
    """Joins what would be printed for each part."""
    texts = [to_text(budget, part) for part in Counted(parts, budget)]
    budget.check_chars(sum(map(len, texts)) + len(separator) * max(len(texts) - 1, 0))
    return PromptText.of(separator).join(texts)


def replace_text(budget: Budget, text: PromptText, old: str, new: str, count: int = -1) -> PromptText:
    """str.replace within the allowance."""
    found = str.count(text, old)
    found = found if count < 0 else min(found, count)
    budget.check_chars(len(text) + found * (len(new) - len(old)))
    budget.spend(size(text) + found * (2 if old else 8))
    return text.replace(old, new, count)


def _text(context: Context, value: object) -> PromptText:
    return PromptText.of(to_text(budget_of(context), value))


@pass_context
def _string(context: Context, value: object) -> PromptText:
    return _text(context, value)


@pass_context
def _safe(context: Context, value: object) -> SafeText:
    text = _text(context, value)
    return SafeText(text.plain(), text.untrusted)


@pass_context
def _escape(context: Context, value: object) -> SafeText:
    if isinstance(value, SafeText):
        return value
    text = _text(context, value)
    budget_of(context).check_chars(5 * len(text))
    budget_of(context).spend(5 * len(text) // 8)
    text = text.escaped()
    return SafeText(text.plain(), text.untrusted)


@pass_context
def _trim(context: Context, value: object, chars: str | None = None) -> PromptText:
    return _text(context, value).strip(chars)


@pass_context
def _lower(context: Context, value: object) -> PromptText:
    return _text(context, value).lower()


@pass_context
def _upper(context: Context, value: object) -> PromptText:
    return _text(context, value).upper()


@pass_context
def _capitalize(context: Context, value: object) -> PromptText:
    return _text(context, value).capitalize()


@pass_context
def _title(context: Context, value: object) -> PromptText:
    text = _text(context, value)
    titled = FILTERS["title"](text.plain())
    return PromptText(titled, text.untrusted) if len(titled) == len(text) else PromptText.outside(titled)


@pass_context
def _replace(context: Context, value: object, old: object, new: object, count: int | None = None) -> PromptText:
    old, new = _text(context, old), _text(context, new)
    return replace_text(budget_of(context), _text(context, value), old, new, -1 if count is None else count)


@pass_context
def _join(context: Context, value: Iterable[object], d: str = "", attribute: str | int | None = None) -> PromptText:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    return join_text(budget_of(context), value, d)


@pass_context
def _center(context: Context, value: object, width: int = 80) -> PromptText:
    budget_of(context).check_chars(width)
    return _text(context, value).center(width)


@pass_context
def _indent(context: Context, s: object, width: int | str = 4, first: bool = False, blank: bool = False) -> PromptText:
    """Indents every line but the first (unless `first`) and the empty ones (unless `blank`)."""
    budget = budget_of(context)
    if isinstance(width, int):
        budget.check_chars(width)
    indention = width if isinstance(width, str) else " " * width
    lines = (_text(context, s) + "\n").splitlines()
    budget.spend(2 * len(lines))
    budget.check_chars(len(indention) * len(lines))
    indented = [line if i and not line and not blank else indention + line for i, line in enumerate(lines)]
    if not first and lines:
        indented[0] = lines[0]
    return join_text(budget, indented, "\n")


@pass_context
def _format(context: Context, value: object, *args: object, **kwargs: object) -> object:
    if args and kwargs:
        raise TypeError("format takes positional or keyword arguments, not both")
    return context.environment.call_binop(context, "%", _text(context, value), kwargs or args)  # type: ignore[attr-defined]


@pass_context
def _sum(context: Context, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if attribute is not None:
        iterable = map(make_attrgetter(context.environment, attribute), iterable)
    for item in Counted(iterable, budget_of(context)):
        start = context.environment.call_binop(context, "+", start, item)  # type: ignore[attr-defined]
    return start


@pass_context
def _tojson(
    context: Context,
    x: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps, as Hugging Face's templates have it: no HTML escapes."""
    budget = budget_of(context)
    is_outside = budget.spend_deep((x, separators))
    if indent is not None and (indent if isinstance(indent, int) else len(indent)) > 16:
        raise BoundExceededError(f"tojson has indent {indent!r:.40}, at most 16 is allowed")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    chunks: list[str] = []
    num_chars = 0
    for chunk in encoder.iterencode(x):
        num_chars += len(chunk)
        budget.check_chars(num_chars)
        chunks.append(chunk)
    budget.spend(num_chars // 8)
    text = "".join(chunks)
    return PromptText.outside(text) if is_outside else text


def _paying(name: str, inner: Callable[..., Any], *, is_deep: bool) -> Callable[..., Any]:
    """`inner` with its arguments paid for, and an iterator it returns paid for as it is used."""
    passed = getattr(inner, "jinja_pass_arg", None)

    @pass_context
    def paying(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        if is_deep and isinstance(value, Iterator):
            value = list(Counted(value, budget))
        for argument in (value, *args, *kwargs.values()):
            if is_deep:
                budget.spend_deep(argument)
            budget.spend(size(argument))
            if name in _COUNTS and isinstance(argument, int) and argument is not value:
                _check_count(budget, name, argument)
        lead = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (context.environment,)}
        result = inner(*lead.get(passed.name if passed else "", ()), value, *args, **kwargs)
        budget.spend(size(result))
        return Counted(result, budget) if isinstance(result, Iterator) else result

    return paying


def _check_count(budget: Budget, name: str, count: int) -> None:
    if abs(count) > MAX_COUNT or (name == "round" and abs(count) > 100):
        raise BoundExceededError(f"it asks {name} for more than {100 if name == 'round' else MAX_COUNT}")
    budget.spend(abs(count))


def chat_filters() -> dict[str, Callable[..., Any]]:
    """Filters by name."""
    own: dict[str, Callable[..., Any]] = {
        "capitalize": _capitalize, "center": _center, "e": _escape, "escape": _escape, "format": _format,
        "indent": _indent, "join": _join, "lower": _lower, "replace": _replace, "safe": _safe, "string": _string,
        "sum": _sum, "title": _title, "tojson": _tojson, "trim": _trim, "upper": _upper,
    }  # fmt: skip
    passed = {name: _paying(name, FILTERS[name], is_deep=False) for name in _PASSED}
    return own | passed | {name: _paying(name, FILTERS[name], is_deep=True) for name in _COMPARING}


def chat_tests() -> dict[str, Callable[..., Any]]:
    """Tests by name."""
    return {name: _paying(name, test, is_deep=name in _DEEP_TESTS) for name, test in dict[str, Any](TESTS).items()}
