"""Flags of `vllm serve` and of LMDeploy's api_server that are no settings here: without effect, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuili.checks import shown
from tuili.errors import InvalidRequestError
from tuili.runtime.api import vllm_arguments
from tuili.runtime.api.vllm_arguments import Ignored, split_arguments
from tuili.server.settings import lmdeploy_flags, vllm_flags

IGNORED: Mapping[str, Ignored] = {**vllm_arguments.IGNORED, **lmdeploy_flags.IGNORED, **vllm_flags.IGNORED}
REFUSED = {**vllm_arguments.REFUSED, **lmdeploy_flags.REFUSED, **vllm_flags.REFUSED}


def known_names() -> tuple[str, ...]:
    """All names that are no settings here."""
    return (*IGNORED, *(name for name in REFUSED if name not in IGNORED))


def why_without_effect(name: str) -> str | None:
    """Why a flag that is taken has none; None for one that is refused."""
    known = IGNORED.get(name)
    if known is None or name in REFUSED:
        return None
    return f"{known.why[:1].upper()}{known.why[1:]}." if known.why else "What it asks for holds in any case."


def is_switch(name: str) -> bool:
    """Whether the flag stands alone on a command line."""
    if name in REFUSED:
        nothing, _ = REFUSED[name]
        return False in nothing and 0 not in [value for value in nothing if not isinstance(value, bool)]
    allowed = IGNORED[name].allowed
    return allowed is not None and True in allowed


def notes_on(values: Mapping[str, Any], label: Mapping[str, str]) -> list[str]:
    """Why each value has no effect, under its label. Raises InvalidRequestError for what is refused or out of range."""
    notes = []
    for name, value in values.items():
        try:
            notes += _notes(name, value)
        except InvalidRequestError as error:
            raise InvalidRequestError(str(error).replace(name, label[name], 1), param=name) from None
    return notes


def _notes(name: str, value: object) -> list[str]:
    if name in REFUSED:
        nothing, why = REFUSED[name]
        if value not in nothing:
            raise InvalidRequestError(f"{name}={shown(value)} is not implemented: {why}", param=name)
        return []
    return split_arguments({name: value}, IGNORED)[1]
