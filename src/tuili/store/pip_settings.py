"""Which package index to use: the one pip is configured with. Knows pip's settings; fetches nothing.

Settings come from `pip config list`, pip's own merge of its files and PIP_* variables, so that every
platform's file locations and precedence are right by construction.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass

_SECTIONS = (":env:", "download", "install", "global")  # the strongest first
_NO = frozenset({"", "0", "false", "no", "off"})
_PIP_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSettings:
    """Index roots and find-links places in order of preference, and how to reach them."""

    index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    ca_file: str | None = None
    proxy: str | None = None


def pip_settings() -> IndexSettings:
    """The settings `pip download` would use now."""
    return settings_from(_configured(), default_index())


def settings_from(values: dict[str, str], default: str | None) -> IndexSettings:
    """Settings from pip's keys such as "global.index-url" and ":env:.find-links"."""

    def value(key: str) -> str:
        return next((values[f"{section}.{key}"] for section in _SECTIONS if f"{section}.{key}" in values), "")

    first = value("index-url") or default or ""
    has_index = value("no-index").lower() in _NO
    return IndexSettings(
        index_urls=tuple(first.split() + value("extra-index-url").split()) if has_index else (),
        find_links=tuple(value("find-links").split()),
        ca_file=value("cert") or None,
        proxy=value("proxy") or None,
    )


def default_index() -> str | None:
    """pip's own default index, None where pip is not installed."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return None
    return str(PyPI.simple_url)


def _configured() -> dict[str, str]:
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return _environment()
    lines = (line.partition("=") for line in done.stdout.splitlines())
    return {key: str(ast.literal_eval(text)) for key, sign, text in lines if sign}


def _environment() -> dict[str, str]:
    """What PIP_* variables say, for machines without pip."""
    names = {
        name: name.removeprefix("PIP_").lower().replace("_", "-") for name in os.environ if name.startswith("PIP_")
    }
    return {f":env:.{key}": os.environ[name] for name, key in names.items()}
