"""API keys as the server keeps them: hashes, never the keys. Knows no HTTP."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuili.errors import InvalidRequestError
from tuili.server.caller import ALL_SCOPES

MIN_KEY_CHARS = 8
MAX_KEY_CHARS = 512
_MAX_FILE_BYTES = 1 << 20
_HASHED = re.compile("sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's sha256 and what it opens."""

    digest: bytes
    scopes: frozenset[str] = ALL_SCOPES

    @property
    def key_id(self) -> str:
        """What logs and tables call it."""
        return self.digest.hex()[:8]

    @property
    def cache_salt(self) -> str:
        """Differs for every key and tells nothing about it."""
        return hashlib.sha256(b"prefix cache" + self.digest).hexdigest()[:32]


def digest_of(key: str | bytes) -> bytes:
    """What of a key is kept and compared."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def find_key(keys: Sequence[ApiKey], given: bytes) -> ApiKey | None:
    """The key that was given. Takes equally long wherever it is in the list, and when it is not."""
    digest, found = digest_of(given), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def read_api_keys(
    values: Iterable[str], file: Path | None = None, scopes: frozenset[str] = ALL_SCOPES
) -> tuple[ApiKey, ...]:
    """Keys of flags, then of a file's lines: `KEY`, or `KEY SCOPE[,SCOPE]` with the scopes infer and manage.

    A key may be given as sha256: and its hash. Empty lines and those that begin with # are skipped. `scopes` is for
    keys that name none. Raises InvalidRequestError, which never quotes a key.
    """
    keys = [_parsed(value, f"--api-key number {number}", scopes) for number, value in enumerate(values, 1)]
    if file is not None:
        lines = _lines(file)
        keys += [
            _parsed(line, f"{file}: line {number}", scopes)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not keys:
            raise InvalidRequestError(f"{file}: holds no key", param="api_key_file")
    if len({key.digest for key in keys}) < len(keys):
        raise InvalidRequestError("an API key is given twice", param="api_key")
    return tuple(keys)


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise InvalidRequestError(f"{file}: larger than {_MAX_FILE_BYTES} bytes", param="api_key_file")
        return content.decode("utf-8").splitlines()
    except OSError as error:
        raise InvalidRequestError(f"{file}: {error.strerror or 'unreadable'}", param="api_key_file") from None
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{file}: is no UTF-8 text", param="api_key_file") from None


def _parsed(text: str, place: str, default: frozenset[str]) -> ApiKey:
    key, _, scopes = text.strip().partition(" ")
    hashed = _HASHED.fullmatch(key)
    if key.startswith("sha256:") and hashed is None:
        raise InvalidRequestError(f"{place}: behind sha256: come 64 hexadecimal digits", param="api_key")
    if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise InvalidRequestError(
            f"{place}: a key must be {MIN_KEY_CHARS} to {MAX_KEY_CHARS} printable ASCII characters without spaces",
            param="api_key",
        )
    names = frozenset(name.strip() for name in scopes.split(",")) if scopes.strip() else default
    if not names <= ALL_SCOPES:
        raise InvalidRequestError(
            f"{place}: behind a key come its scopes, infer or manage or infer,manage", param="api_key"
        )
    return ApiKey(digest_of(key) if hashed is None else bytes.fromhex(hashed[1]), names)
