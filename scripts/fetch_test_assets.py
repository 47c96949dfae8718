"""Fetches what the tests read into the cache folder of tests/support/assets.py, each file verified.

python scripts/fetch_test_assets.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import assets


def main() -> None:
    for name in ("smollm2:135m", "gemma3:270m"):
        print(assets.model(name))
    print(assets.llama_cpp_models())
    print(assets.node_clients())


if __name__ == "__main__":
    main()
