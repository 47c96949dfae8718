"""docs/serving.md lists every setting as it is."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

from tuili.server.settings.serve_settings import all_settings
from tuili.server.settings.settings_sources import resolve

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "serving.md"


def test_its_tables_are_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("writer", ROOT / "scripts" / "write_serve_settings.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    text = PAGE.read_text(encoding="utf-8")
    assert text == writer.with_tables(text), "run scripts/write_serve_settings.py"
    assert all(f"| `{setting.flag}" in text for setting in all_settings().values() if setting.name != "models")


def test_its_file_is_one(tmp_path: Path) -> None:
    (found,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "serve.toml").write_text(found)
    settings = resolve(config=str(tmp_path / "serve.toml")).settings
    assert (settings.port, len(settings.models), settings.keep_alive_s) == (9000, 2, 600.0)
    assert set(tomllib.loads(found)) <= {setting.name for setting in all_settings().values()}


def test_flags_and_variables_it_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    settings = all_settings().values()
    flags = {flag for setting in settings for flag in (setting.flag, *setting.flags)} | {
        "--config",
        "--swap-space",
        "--factory",
    }
    assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) <= flags | {"--config", "--swap-space", "--factory"}
    variables = {name for setting in settings for name in (setting.variable, *setting.variables, setting.ollama)}
    assert set(re.findall(r"\b(?:OLLAMA|VLLM|TUILI_SERVE)_[A-Z_]+\b", text)) <= variables | {"TUILI_SERVE_CONFIG"}
