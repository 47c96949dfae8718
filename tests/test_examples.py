"""Every example runs as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import assets

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, smollm2_gguf: Path) -> None:
    assert smollm2_gguf.is_file()
    environment = {**os.environ, "TUILI_HOME": str(assets.store_dir())}
    command = [sys.executable, str(example)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 3
    assert "Traceback" not in result.stderr
    assert "leaked" not in result.stderr
