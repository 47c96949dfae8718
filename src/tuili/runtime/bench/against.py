"""Finds the file that opens a peer, by the name people give it."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from tuili.errors import InvalidRequestError
from tuili.registry import discover, index
from tuili.runtime.bench import peers
from tuili.runtime.bench.target import PeerTarget
from tuili.runtime.bench.workload import Contender

URL = "URL"


def peer_modules() -> dict[str, ModuleType]:
    """What --against may say -> the module that opens it."""
    return index([(module.NAME, module) for module in discover(peers).values()], "peer")


def is_url(name: str) -> bool:
    """Whether this names a server."""
    return name.startswith(("http://", "https://"))


def open_peer(against: str, target: PeerTarget) -> Contender:
    """Opens a peer by its name or URL.

    Raises InvalidRequestError for an unknown one or a missing option, PeerError where it does not start.
    """
    modules = peer_modules()
    if is_url(against):
        against, target = URL, replace(target, url=against)
    if against not in modules:
        raise InvalidRequestError(
            f"against must be one of {', '.join(sorted(modules))}, got {against!r}", param="against"
        )
    contender: Contender = modules[against].open_peer(target)
    return contender
