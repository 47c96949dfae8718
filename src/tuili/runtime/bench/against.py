"""Finds the file that opens a peer, by the name people give it."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import TypeVar

from tuili.errors import InvalidRequestError
from tuili.registry import discover, index
from tuili.runtime.bench import peers
from tuili.runtime.bench.target import PeerFlags, PeerTarget
from tuili.runtime.bench.workload import Contender

URL = "URL"
_Flags = TypeVar("_Flags", bound=PeerFlags)


def peer_modules() -> dict[str, ModuleType]:
    """What --against may say -> the module that opens it."""
    return index([(module.NAME, module) for module in discover(peers).values()], "peer")


def is_url(name: str) -> bool:
    """Whether this names a server."""
    return name.startswith(("http://", "https://"))


def check_peer(against: str, flags: PeerFlags) -> None:
    """What can be told wrong of a peer before anything is loaded. Raises as open_peer does."""
    module, flags = _found(against, flags)
    module.check(flags)


def open_peer(against: str, target: PeerTarget) -> Contender:
    """Opens a peer by its name or URL.

    Raises InvalidRequestError for an unknown one or a missing option, PeerError where it does not start.
    """
    module, target = _found(against, target)
    contender: Contender = module.open_peer(target)
    return contender


def _found(against: str, flags: _Flags) -> tuple[ModuleType, _Flags]:
    modules = peer_modules()
    if is_url(against):
        against, flags = URL, replace(flags, url=against)
    if against not in modules:
        raise InvalidRequestError(
            f"against must be one of {', '.join(sorted(modules))}, got {against!a:.200}", param="against"
        )
    return modules[against], flags
