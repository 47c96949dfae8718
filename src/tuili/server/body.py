"""Reads a request's body: JSON that means one thing only, checked against a pydantic model; the first fault is named.

Knows no wire format: models are the dialects'. What JSON allows and programs stumble over is refused: doubled keys,
lone surrogates, NUL, NaN, deep nesting, names and lists beyond number.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, FailFast, ValidationError
from starlette.requests import Request

from tuili.checks import first_doubled, shown
from tuili.errors import InvalidRequestError, MediaTypeError

MAX_DEPTH = 64
MAX_PARTS = 1 << 18  # names, objects and lists of a body, each of which costs far more than the bytes that write it
_PLAIN_TYPES = frozenset({type(None), bool, int, float, str, dict})  # asking pydantic's classes costs far more
_QUICK_BYTES = 1 << 18  # larger bodies are read beside the event loop
Body = TypeVar("Body", bound=BaseModel)
Item = TypeVar("Item")


class _FailFast(FailFast):
    __hash__ = object.__hash__  # unions of types need it


def _with_one_fault(value: object) -> object:
    """The mapping, or of one with faults the first of these alone."""
    if isinstance(value, dict):
        for name, number in value.items():
            if isinstance(number, bool) or not isinstance(number, int | float):
                return {name: number}
    return value


# Of the elements of a body one fault is told; no more than one is looked for, as each takes memory.
JsonList = Annotated[list[Item], _FailFast()]
JsonNumbers = Annotated[dict[str, float], BeforeValidator(_with_one_fault)]
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one that does not end goes on to the body's end
_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")  # NUL and surrogates; in pairs these are fine
_MESSAGES = {  # pydantic's kinds of faults, in our words
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "string_type": "a string",
    "tuple_type": "a list",
}


async def read_body(request: Request, model: type[Body]) -> Body:
    """The body as `model`. What it does not know is named in the answer's x-ignored-params, or refused with --strict.

    Raises InvalidRequestError with the field, MediaTypeError, and what the guards raise while a body arrives.
    """
    check_media_type(request)
    content = await request.body()
    is_large = len(content) > _QUICK_BYTES
    body, unknown = await asyncio.to_thread(_read, content, model) if is_large else _read(content, model)
    if unknown and request.app.state.serving.settings.is_strict:
        raise InvalidRequestError(f"{unknown[0]} is no field of this request", param=unknown[0])
    request.state.caller.ignored_params = unknown
    return body


def _read(content: bytes, model: type[Body]) -> tuple[Body, tuple[str, ...]]:
    body = validated(parse_json(content), model)
    return body, tuple(unknown_fields(body))


def check_media_type(request: Request) -> None:
    """Refuses what a form on a foreign web page could send without asking (CSRF).

    curl -d says "form" for whatever it sends; no browser can call itself curl, nor leave out where it comes from.
    """
    headers = request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return
    is_curl = headers.get("user-agent", "").startswith("curl/") and "origin" not in headers
    if is_curl and "sec-fetch-site" not in headers and media_type in ("", "application/x-www-form-urlencoded"):
        return
    found = f"got {shown(media_type)}" if media_type else "got none"
    raise MediaTypeError(f"content-type must be application/json, {found}")


def parse_json(content: bytes) -> Any:
    """The value of a JSON text. Raises InvalidRequestError saying what is wrong with it, and where."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is no UTF-8 text at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise InvalidRequestError("the body begins with a byte order mark: send plain UTF-8")
    if _num_parts(content) > MAX_PARTS and _num_parts(_STRINGS.sub(b"", content)) > MAX_PARTS:
        raise InvalidRequestError(f"the body has more than {MAX_PARTS} names, objects and lists")
    try:
        value = _DECODER.decode(text)
    except InvalidRequestError:
        raise
    except json.JSONDecodeError as error:
        raise InvalidRequestError(
            f"the body is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # an integer of more digits than Python converts
        raise InvalidRequestError("the body holds an integer with too many digits") from None
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if _SUSPICIOUS.search(content):
        _check_texts(value)
    return value


def _num_parts(content: bytes) -> int:
    """Of what may be strings, too many."""
    return content.count(b":") + content.count(b"{") + content.count(b"[")


def validated(value: Any, model: type[Body]) -> Body:
    """The value as `model`. Raises InvalidRequestError naming the first field at fault."""
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {shown(value)}")
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        raise _first_fault(error) from None
    except RecursionError:
        raise _too_deep() from None


def unknown_fields(body: BaseModel) -> Iterator[str]:
    """Names of what a body has and its model has not, models inside it included."""
    yield from body.model_extra or ()
    fields = body.__dict__
    for name in sorted(body.model_fields_set):
        value = fields.get(name)
        if type(value) in _PLAIN_TYPES:
            continue
        for item in value if isinstance(value, list) else [value]:
            if type(item) not in _PLAIN_TYPES and isinstance(item, BaseModel):
                yield from (f"{name}.{inner}" for inner in unknown_fields(item))


def _first_fault(error: ValidationError) -> InvalidRequestError:
    """Of the alternatives of a union, the one that got furthest, deepest first, tells the fault."""
    faults = error.errors(include_url=False, include_context=False)
    of_first_field = (fault for fault in faults if fault["loc"][:1] == faults[0]["loc"][:1])
    fault = max(of_first_field, key=lambda f: (len(f["loc"]), [part for part in f["loc"] if isinstance(part, int)]))
    param = _path([part for part in fault["loc"] if _is_field(part)])
    if fault["type"] == "missing":
        return InvalidRequestError(f"{param} is missing", param=param)
    allowed = _MESSAGES.get(fault["type"])
    if allowed is None:
        return InvalidRequestError(f"{param}: {fault['msg']}, got {shown(fault['input'])}", param=param)
    return InvalidRequestError(f"{param} must be {allowed}, got {shown(fault['input'])}", param=param)


def _is_field(part: int | str) -> bool:
    """pydantic names the alternatives of a union, too: "str", "list[int]", "TextPart", "function-after[...]"."""
    if isinstance(part, int):
        return True
    return "[" not in part and part not in ("str", "int", "float", "bool", "dict", "none") and not part[:1].isupper()


def _path(parts: Sequence[int | str]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = []
        for item in level:
            inner += [v for v in (item.values() if type(item) is dict else item) if type(v) in (dict, list)]
        if not inner:
            return
        level = inner
    raise _too_deep()


def _check_texts(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            waiting += item.keys()
            waiting += item.values()
        elif type(item) is list:
            waiting += item
        elif type(item) is str:
            if "\0" in item:
                raise InvalidRequestError("the body holds a NUL character")
            try:
                item.encode()
            except UnicodeEncodeError:
                raise InvalidRequestError("the body holds a lone surrogate: no Unicode text") from None


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(f"the body is nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        doubled = first_doubled(name for name, _ in pairs)
        raise InvalidRequestError(f"the body has {shown(doubled)} twice in one object", param=doubled)
    return value


def _no_number(text: str) -> NoReturn:
    raise InvalidRequestError(f"the body holds {text}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidRequestError(f"the body holds {shown(text)}, which is beyond all numbers of 64 bits")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
