"""Changes to JSON values and to their text: other types, edge values, keys lost, repeated and renamed, bytes broken."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 4, 8, 16, 97, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1e300, 1e-300, None, True, False, "", "a", "\0", "\ud83d\ude00", "x" * 300, "../x"),
    *([], {}, [1], [0, 0], [None], {"a": "b"}, {"a": 1}, [[1]], "F32", "BF16", "I64", "silu", "linear", "yarn"),
    *("<|end|>", "{{ x }}", "{% for i in range(10**9) %}{% endfor %}", {"content": "<|end|>"}, {"type": "BPE"}),
)
SNIPPETS: tuple[bytes, ...] = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\r", b"\0", b"\x0b", b"\xff", b"\xc2\xa0"),
    *(b"\\ud800", b"\\u0061", b"\\", b"\\x", b"0", b"-", b"-0", b"1e1", b"1e400", b"0.0", b"01", b"1.", b".5", b"+1"),
    *(b"null", b"true", b"NaN", b"Infinity", b"//", b"/**/", b"'", b'"x":1,', b"\xef\xbb\xbf", b"\xed\xa0\x80"),
)


def mutated(value: Any, chooser: random.Random) -> Any:
    """A copy of a JSON value with one to three changes."""
    changed = copy.deepcopy(value)
    for _ in range(chooser.choice((1, 1, 2, 3))):
        holder = chooser.choice(_holders(changed))
        if isinstance(holder, dict):
            _change_object(holder, chooser)
        else:
            _change_list(holder, chooser)
    return changed


def _holders(value: Any) -> list[Any]:
    """Every object and list inside, the value itself first."""
    found, stack = [], [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict | list):
            found.append(item)
            stack.extend(item.values() if isinstance(item, dict) else item)
    return found


def _change_object(holder: dict[str, Any], chooser: random.Random) -> None:
    if not holder:
        holder["n"] = copy.deepcopy(chooser.choice(VALUES))
        return
    key = chooser.choice(sorted(holder))
    how = chooser.choice(("value", "value", "value", "rename", "drop", "copy", "reverse"))
    if how == "value":
        holder[key] = copy.deepcopy(chooser.choice(VALUES))
    elif how == "rename":
        holder[chooser.choice(("", "a", "__metadata__", "z" * 200, "a\0b", "\U0001f600"))] = holder.pop(key)
    elif how == "drop":
        del holder[key]
    elif how == "copy":
        holder[chooser.choice(("n", "m", *sorted(holder)))] = copy.deepcopy(holder[key])
    else:
        items = list(reversed(holder.items()))
        holder.clear()
        holder.update(items)


def _change_list(holder: list[Any], chooser: random.Random) -> None:
    how = chooser.choice(("value", "drop", "repeat", "empty", "append"))
    if how == "append" or not holder:
        holder.append(copy.deepcopy(chooser.choice(VALUES)))
        return
    at = chooser.randrange(len(holder))
    if how == "value":
        holder[at] = copy.deepcopy(chooser.choice(VALUES))
    elif how == "drop":
        del holder[at]
    elif how == "repeat":
        holder.insert(at, copy.deepcopy(holder[at]))
    else:
        holder.clear()


def mutated_text(value: Any, chooser: random.Random, damage: float = 0.3) -> bytes:
    """The text of a changed value, its bytes broken now and then."""
    text = json.dumps(mutated(value, chooser), ensure_ascii=chooser.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    if chooser.random() >= damage:
        return data
    for _ in range(chooser.choice((1, 1, 2))):
        at = chooser.randrange(len(data) + 1)
        data = data[:at] + chooser.choice(SNIPPETS) + data[at + chooser.choice((0, 0, 1, 2)) :]
    return data
