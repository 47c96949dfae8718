"""docs/http_api.md lists every field that the code takes, takes without effect, or refuses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tuili.runtime.openai.fields import CHAT, COMPLETIONS, REFUSED, SAMPLING, WITHOUT_EFFECT, taken_over_http

PAGE = (Path(__file__).parents[4] / "docs" / "http_api.md").read_text(encoding="utf-8")


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _tables() -> list[str]:
    both = taken_over_http(CHAT) & taken_over_http(COMPLETIONS)
    told = [
        f"| both | sampling, see [sampling.md](sampling.md) | {_names(SAMPLING)} |",
        f"| both | | {_names(both - SAMPLING)} |",
        f"| chats | | {_names(taken_over_http(CHAT) - both)} |",
        f"| completions | | {_names(taken_over_http(COMPLETIONS) - both)} |",
    ]
    told += [f"| `{name}` | {reason} |" for name, reason in WITHOUT_EFFECT.items()]
    for name, refused in REFUSED.items():
        neutral = ", ".join(f"`{json.dumps(value)}`" for value in refused.neutral) or "-"
        told.append(f"| `{name}` | {neutral} | {refused.reason} |")
    return told


@pytest.mark.parametrize("row", _tables())
def test_every_field_stands_in_the_page_as_the_code_has_it(row: str) -> None:
    assert row in PAGE.splitlines()


def test_the_page_lists_no_other_field() -> None:
    section = PAGE.partition("## OpenAI's API")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith(("| `", "| both", "| chats", "| completions"))]
    fields = [row for row in rows if not row.startswith(("| `GET", "| `POST"))]
    assert sorted(fields) == sorted(_tables())
