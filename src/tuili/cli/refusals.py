"""What people may ask of a chat and cannot have yet: pictures looked at, answers of a given structure."""

from __future__ import annotations

import re
from typing import Never

from tuili.errors import InvalidRequestError
from tuili.store.store import existing_path

_SUFFIXES = "png|jpe?g|webp|gif|bmp|tiff?|svg|heic"
# A path as people write or drag it: in quotes, or with its spaces escaped.
_PATH = re.compile(
    rf"""(?i)"([^"\n]+\.(?:{_SUFFIXES}))"|'([^'\n]+\.(?:{_SUFFIXES}))'|((?:\\.|\S)+?\.(?:{_SUFFIXES}))\b"""
)


def refuse_pictures(text: str) -> None:
    """Raises InvalidRequestError when a word of `text` is the path of a picture that exists."""
    for match in _PATH.finditer(text):
        path = next(filter(None, match.groups())).replace("\\ ", " ")
        if existing_path(path) is not None:
            refuse_picture(path)


def refuse_picture(path: str) -> Never:
    """Raises InvalidRequestError saying that it cannot be looked at."""
    raise InvalidRequestError(
        f"images cannot be read yet, found {path!a:.200}: no model that runs here sees; describe it in words",
        param="image",
    )


def refuse_format() -> Never:
    """Raises InvalidRequestError."""
    raise InvalidRequestError(
        "format: structured output is not there yet: ask for JSON in the prompt, and check what comes", param="format"
    )
