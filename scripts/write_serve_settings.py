"""Writes the table of settings in docs/serving.md from the settings themselves; a test compares the two.

python scripts/write_serve_settings.py
"""

from __future__ import annotations

from pathlib import Path

from tuili.server.settings.serve_settings import all_settings
from tuili.server.settings.setting import Setting

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"


def tables() -> str:
    """A heading and a table for each group of settings."""
    groups: dict[str, list[Setting]] = {}
    for setting in all_settings().values():
        groups.setdefault(setting.group, []).append(setting)
    return "\n".join(_table(name, settings) for name, settings in groups.items())


def _table(name: str, settings: list[Setting]) -> str:
    lines = [f"### {name}", "", "| flag | also | default | what it says |", "|---|---|---|---|"]
    for setting in settings:
        first = "MODEL ..." if setting.name == "models" else f"{setting.flag} {setting.kind.metavar}".strip()
        also = [*setting.flags, *setting.variables, *([setting.ollama] if setting.ollama else [])]
        cells = (_code(first), ", ".join(map(_code, also)), setting.shown_default, setting.help)
        lines.append(" ".join(["|", *(f"{cell} |" if cell else "|" for cell in map(_escaped, cells))]))
    return "\n".join([*lines, ""])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"


def with_tables(page: str) -> str:
    """The page with its tables as they should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
