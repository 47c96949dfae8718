"""Sockets that whoever started the server had opened for it, as systemd hands them over: sd_listen_fds(3).

They outlive the server, so that connections wait for its successor instead of being refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

from tuili.errors import InvalidRequestError

_FIRST = 3  # the descriptor they begin at
_MAX = 64


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Those that were handed over to this process; it alone has them. Raises InvalidRequestError for what is no socket.

    The variables go, so that processes this one starts do not take them for theirs.
    """
    owner, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if owner != str(os.getpid()) or not count.isdecimal():
        return []
    found: list[socket.socket] = []
    try:
        for descriptor in range(_FIRST, _FIRST + min(int(count), _MAX)):
            os.set_inheritable(descriptor, False)
            found.append(socket.socket(fileno=descriptor))
            if not found[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise InvalidRequestError(f"LISTEN_FDS: descriptor {descriptor} does not listen")
            found[-1].setblocking(False)
    except OSError:
        _close(found)
        raise InvalidRequestError(f"LISTEN_FDS: descriptor {_FIRST + len(found)} is no socket") from None
    except InvalidRequestError:
        _close(found)
        raise
    return found


def _close(sockets: list[socket.socket]) -> None:
    for opened in sockets:
        with suppress(OSError):
            opened.close()
