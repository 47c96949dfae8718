"""Sockets the server listens on: internet addresses and Unix sockets, bound before anything is loaded.

Knows addresses and errors of the system; no HTTP.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tuili.errors import InvalidRequestError

OLLAMA_PORT = 11434
_SCHEME_PORTS = {"http://": 80, "https://": 443, None: OLLAMA_PORT}
_OLLAMA_HOST = re.compile(r"(https?://)?(\[[^]]*\]|[^:/]*)(?::([0-9]{1,5}))?/?")
_BACKLOG = 2048
_LOOPBACKS = [(int(socket.AF_INET), "127.0.0.1"), (int(socket.AF_INET6), "::1")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A host and a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    uds: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.uds or f"{host}:{self.port}"


def ollama_address(text: str) -> Address:
    """What OLLAMA_HOST means: parts left out are Ollama's."""
    match = _OLLAMA_HOST.fullmatch(text)
    assert match is not None, "the setting's kind lets no other text through"
    port = int(match[3]) if match[3] else _SCHEME_PORTS[match[1]]
    if port > 65535:
        raise InvalidRequestError(f"ollama_host must name a port in [0, 65535], got {port}", param="ollama_host")
    return Address(host=match[2].strip("[]") or "127.0.0.1", port=port)


class Listeners:
    """Open sockets, and where they are. Closing removes Unix sockets that were made here from the disk."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.addresses: list[Address] = []
        self._made: list[tuple[str, tuple[int, int]]] = []

    def add_unix(self, path: str) -> None:
        self.sockets.append(_unix_socket(path))
        self.addresses.append(Address(uds=path))
        self._made.append((path, _stamp(path)))

    def close(self) -> None:
        for listener in self.sockets:
            listener.close()
        for path, made in self._made:
            with suppress(OSError):
                if _stamp(path) == made:  # else it is a successor's
                    os.unlink(path)  # noqa: PTH108


def open_listeners(addresses: Sequence[Address], inherited: Sequence[socket.socket] = ()) -> Listeners:
    """Listens on every address: with a socket that was inherited where there is one for it, else binding one.

    Raises InvalidRequestError for one that is in use or cannot be had, and for an inherited socket elsewhere, as who
    may be let in follows from the addresses; nothing stays open then.
    """
    listeners, left = Listeners(), list(inherited)
    try:
        for number, address in enumerate(addresses):
            if address.port and address in addresses[:number]:
                continue
            if given := [one for one in left if _is_at(one, address)]:
                left = [one for one in left if one not in given]
                listeners.sockets += given  # one for each family that a name stands for
                listeners.addresses.append(address)
            elif address.uds is not None:
                listeners.add_unix(address.uds)
            else:
                _bind_internet(address, listeners)
        if left:
            found = left[0].getsockname()
            where = found if isinstance(found, str) else Address(host=str(found[0]), port=found[1])
            raise InvalidRequestError(
                f"LISTEN_FDS: a socket listens on {where}: give that as --host and --port, or --uds"
            )
    except BaseException:
        listeners.close()
        for one in left:
            one.close()
        raise
    return listeners


def _is_at(listener: socket.socket, address: Address) -> bool:
    found = listener.getsockname()
    if address.uds is not None:
        return bool(found == os.path.abspath(address.uds) or found == address.uds)  # noqa: PTH100
    if not isinstance(found, tuple) or found[1] != address.port:
        return False
    places = _LOOPBACKS if address.host.lower() == "localhost" else []  # many systems name one of them only
    return (listener.family, found[0]) in [*places, *_resolved(address)]


def _bind_internet(address: Address, listeners: Listeners) -> None:
    """All that the name stands for, as localhost may for two families; the first must do."""
    found = _resolved(address)
    port = address.port
    for number, (family, host) in enumerate(found):
        try:
            listener = _internet_socket(family, host, port)
        except OSError as error:
            if number and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            raise _refusal(Address(host=host, port=port), error) from None
        port = listener.getsockname()[1]
        listeners.sockets.append(listener)
        if not number:
            listeners.addresses.append(Address(host=address.host, port=port))


def _resolved(address: Address) -> list[tuple[int, str]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host name"
        raise InvalidRequestError(f"cannot listen on {address.host!a:.200}: {reason}", param="host") from None
    return list(dict.fromkeys((family, str(place[0])) for family, _, _, _, place in found))


def _internet_socket(family: int, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # 0.0.0.0 and localhost have a socket of their own
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _unix_socket(path: str) -> socket.socket:
    """The user's group may connect, as a reverse proxy does. A socket that nobody listens on any more goes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116
                raise InvalidRequestError(f"uds: {path!a} is there and is no socket", param="uds")
            if _is_answered(path):
                raise InvalidRequestError(
                    f"cannot listen on {path!a}: another server does: give another with --uds", param="uds"
                )
            os.unlink(path)  # noqa: PTH108
        mask = os.umask(0o117)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InvalidRequestError(f"uds: cannot listen on {path!a}: {error.strerror}", param="uds") from None
    except BaseException:
        listener.close()
        raise
    return listener


def _stamp(path: str) -> tuple[int, int]:
    """By which a socket is known from one made later at the same path, which may get the same inode."""
    found = os.stat(path)  # noqa: PTH116
    return found.st_ino, found.st_mtime_ns


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1)
        try:
            caller.connect(path)
        except OSError:
            return False
        return True


def _refusal(address: Address, error: OSError) -> InvalidRequestError:
    if error.errno == errno.EADDRINUSE:
        return InvalidRequestError(
            f"port {address.port} of {address.host} is in use: give another with --port", param="port"
        )
    if error.errno == errno.EACCES:
        return InvalidRequestError(f"cannot listen on {address}: ports below 1024 are the system's: give --port")
    return InvalidRequestError(f"cannot listen on {address}: {error.strerror}: give --host", param="host")
