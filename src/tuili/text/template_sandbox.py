"""The jinja environment chat templates run in: Hugging Face's dialect with every cost paid from a budget.

A template may read what it is given, compute and print. It may not load other templates, reach Python's
internals, change its inputs, or use more than its budget. Knows nothing of messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tuili.text.prompt_text import PromptText
from tuili.text.template_budget import BoundExceededError, Budget, Counted, size
from tuili.text.template_filters import budget_of, chat_filters, chat_tests, replace_text, to_text
from tuili.text.template_metering import Metering, meters

_TEXT_METHODS = frozenset(
    {
        "capitalize", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower",
        "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper", "zfill",
    }
)  # fmt: skip
_DICT_METHODS = frozenset({"copy", "get", "items", "keys", "values"})
_LIST_METHODS = frozenset({"copy", "count", "index"})
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(\d{4,}|\*)")


class ChatNamespace(Namespace):
    """jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _check_public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a namespace cannot hold {name!r}: names may not begin with an underscore")


class _Generation(Extension):
    """`{% generation %}` marks assistant text for training; for rendering it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@pass_context
def _printed(context: Context, value: Any) -> str:
    return to_text(budget_of(context), value)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(PromptText.of(str(message)).plain())


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _strftime(now: Callable[[], datetime]) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        if len(format) > 256:
            raise BoundExceededError("strftime_now has a format of more than 256 characters")
        return PromptText.of(format).rewritten(now().strftime(format))

    return strftime_now


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The dialect. Rendering needs a Budget in the variables, under the name template_filters.BUDGET."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(PromptText.concat)

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are computed within the budget too
            finalize=_printed,
            cache_size=0,
            extensions=[_Generation, loopcontrols],
        )
        self.filters.clear()
        self.filters.update(chat_filters() | meters())
        self.tests.clear()
        self.tests.update(chat_tests())
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime(now)
        self.globals["dict"] = _dict
        self.globals["namespace"] = ChatNamespace
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = Metering().visit(super()._parse(source, name, filename))
        return template

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Texts, numbers, lists and dictionaries offer a fixed set of methods."""
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        if isinstance(obj, dict):
            return attr in _DICT_METHODS
        if isinstance(obj, (list, tuple)):
            return attr in _LIST_METHODS
        if isinstance(obj, (int, float, bytes, type)):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuses at once: a template that asks for this is not to be answered with nothing."""
        raise SecurityError(f"attribute {attribute!r:.80} of {type(obj).__name__} is not allowed")

    def wrap_str_format(self, value: Any) -> None:
        """Formatting is PromptText's own, which reads no attributes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(PromptText(obj) if type(obj) is str else obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(PromptText(obj) if type(obj) is str else obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = budget_of(__context)
        budget.enter_call()
        try:
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, PromptText):
                return _call_text_method(budget, owner, __obj.__name__, args, _without_scope(kwargs))
            for argument in (*args, *kwargs.values()):
                budget.spend(size(argument))
            if isinstance(__obj, LoopContext) and args:
                args = (Counted(args[0], budget), *args[1:])
            elif isinstance(owner, LoopContext):
                budget.spend_deep(args)
            elif isinstance(owner, (list, tuple)):
                budget.spend_deep((owner, args))
            result = super().call(__context, __obj, *args, **kwargs)
            budget.spend(size(result))
            return result
        finally:
            budget.leave_call()

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_of(context)
        budget.spend(size(left) + size(right))
        _BINOP_BOUNDS[operator](budget, left, right)
        if operator == "%" and isinstance(left, str):
            return _percent(budget, PromptText.of(left), right)
        return super().call_binop(context, operator, left, right)


def _without_scope(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without the variables of the scope, which jinja passes along to every call."""
    return {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}


def _bound_add(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        budget.check_chars(len(left) + len(right) * (5 if type(left) is not type(right) else 1))


def _bound_mul(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        budget.check_bits(left.bit_length() + right.bit_length())
    for sequence, count in ((left, right), (right, left)):
        if not isinstance(count, int):
            continue
        if isinstance(sequence, str):
            budget.check_chars(len(sequence) * count)
            budget.spend(max(count, 0))
        elif isinstance(sequence, (list, tuple)):
            budget.check_items(8 * len(sequence) * count)


def _bound_pow(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        budget.check_bits(left.bit_length() * abs(right))


def _bound_other(budget: Budget, left: Any, right: Any) -> None:
    """Numbers only get smaller."""


def _percent(budget: Budget, template: PromptText, right: Any) -> PromptText:
    """printf-style formatting; what is no number is printed first."""
    if _WIDE_FIELD.search(template):
        raise BoundExceededError("it formats with a field wider than 999 characters")
    if isinstance(right, dict):
        values: Any = {name: _operand(budget, value) for name, value in right.items()}
        widest = max((len(str(value)) for value in values.values()), default=0)
    else:
        values = tuple(_operand(budget, value) for value in (right if isinstance(right, tuple) else (right,)))
        widest = max((len(str(value)) for value in values), default=0)
    budget.check_chars(len(template) + (1000 + widest) * str.count(template, "%"))
    formatted: PromptText = template % values
    return formatted


def _operand(budget: Budget, value: Any) -> Any:
    return value if isinstance(value, (int, float)) else to_text(budget, value)


_BINOP_BOUNDS: dict[str, Callable[[Budget, Any, Any], None]] = {
    "+": _bound_add,
    "*": _bound_mul,
    "**": _bound_pow,
    "%": _bound_other,
}


def _call_text_method(budget: Budget, text: PromptText, name: str, args: tuple[Any, ...], kwargs: Any) -> Any:
    """A method of a text, its cost and the length of its result known before it runs."""
    budget.spend(size(text))
    for argument in (*args, *kwargs.values()):
        budget.spend(size(argument))
        if isinstance(argument, int) and name in ("center", "ljust", "rjust", "zfill"):
            budget.check_chars(argument)
    if name == "join":
        parts = list(Counted(args[0], budget))
        budget.check_chars(sum(map(len, parts)) + len(text) * len(parts))
        return text.join(parts)
    if name == "replace":
        return replace_text(budget, text, *args, **kwargs)
    if name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) else kwargs.get("sep")
        budget.spend(str.count(text, separator) if separator else len(text) // 8)
    if name == "format":
        budget.spend_deep((args, kwargs))
        longest = max(map(len, map(str, (*args, *kwargs.values()))), default=0)
        budget.check_chars(len(text) + (999 + longest) * str.count(text, "{"))
        args, kwargs = (
            tuple(_operand(budget, value) for value in args),
            {key: _operand(budget, value) for key, value in kwargs.items()},
        )
    result = getattr(text, name)(*args, **kwargs)
    budget.spend(size(result))
    return result
