"""Results as lines of JSON, written as they come: what a stage found is there even if it is killed."""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(slots=True)
class Recorder:
    """Appends to a file, which several processes may do at once, and says it on the terminal."""

    path: Path
    num_failures: int = field(default=0, init=False)

    def add(self, record: Record) -> None:
        line = json.dumps(record) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
        print(line, end="", flush=True)
        self.num_failures += record.get("ok") is False or "failed" in record

    def mend(self) -> None:
        """Ends a line that a killed process cut short, so that the next one is whole."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")

    def attempt(self, name: str, measure: Callable[[], Iterable[Record]]) -> None:
        """Records what `measure` finds; that it failed is a record, too, and the next one goes on."""
        started = time.perf_counter()
        try:
            for record in measure():
                self.add(record)
        except Exception as error:
            traceback.print_exc()
            self.add({"name": name, "failed": f"{type(error).__name__}: {error}"[:400]})
        print(f"-- {name}: {time.perf_counter() - started:.1f} s", flush=True)


def read_records(path: Path) -> list[Record]:
    """What a stage's file holds; none where it never began. A line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def stage_arguments(description: str | None) -> argparse.ArgumentParser:
    """What every stage takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--records", type=Path, required=True, help="file that lines of JSON are added to")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    return parser
