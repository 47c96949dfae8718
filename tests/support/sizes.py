"""What objects take, with everything that hangs on them."""

from __future__ import annotations

import gc
import sys
from typing import Any

_OF_ALL = (type, type(sys), type(gc.collect), type(lambda: 0))


def deep_size(value: Any) -> int:
    """Bytes of an object and of all it refers to, each once; not of what is everybody's, as classes are."""
    seen: set[int] = set()
    found, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        is_cached = isinstance(item, int) and -5 <= item <= 256
        if id(item) in seen or item is None or is_cached or isinstance(item, _OF_ALL):
            continue
        seen.add(id(item))
        found += sys.getsizeof(item)
        waiting += gc.get_referents(item)
    return found
