"""Where a job's answers end up: a file of lines, a folder of texts, or a stream. Knows no journal and no models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tuili.errors import InvalidRequestError
from tuili.runtime.jobs.task import Result
from tuili.runtime.jobs.template import Template
from tuili.store.durable import make_folder, publish, sync_folder

FAILED_NAME = "failed.jsonl"
_PART = ".new-"
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # which JSON need not escape
_MAX_NAME_BYTES = 240  # of 255, less what a file is called while it is written


@dataclass(frozen=True, slots=True)
class FileNames:
    """What answers are called in a folder: a template over the row's values and `n`, the number of the answer."""

    template: Template

    def of(self, values: Mapping[str, Any], num_answers: int) -> list[str]:
        """Raises InvalidRequestError for a name that is no plain file name, and when answers share one."""
        names = [self.template.render({"n": n, **values}) for n in range(num_answers)]
        for name in names:
            if not name or name.startswith(".") or set("/\\\0\n\r") & set(name) or name == FAILED_NAME:
                raise InvalidRequestError(f"name gives {name!r:.80}, which is not allowed as a file name", param="name")
            if len(name.encode()) > _MAX_NAME_BYTES:
                raise InvalidRequestError(
                    f"name gives {name!r:.80}..., of {len(name.encode())} bytes; at most {_MAX_NAME_BYTES} are allowed",
                    param="name",
                )
        if len(set(names)) != len(names):
            raise InvalidRequestError(
                f"name must hold {{n}}, as in 'seed_{{i}}_{{n}}.txt': a row has {num_answers} answers", param="name"
            )
        return names


def as_line(value: Mapping[str, Any]) -> str:
    """One line of JSON, by anybody's notion of a line; text stays readable."""
    return json.dumps(value, ensure_ascii=False, default=str).translate(_LINE_BREAKS) + "\n"


def publish_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a whole file at once: a reader sees the old one or the new one."""
    make_folder(path.parent)
    part = path.with_name(f"{_PART}{path.name}")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(map(as_line, lines))
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class AnswerFolder:
    """One file for each answer. Files appear whole; `sync` makes them durable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unsynced: set[str] = set()

    def write(self, name: str, text: str) -> None:
        """Writes an answer unless it is there already."""
        path, data = self.folder / name, text.encode()
        if path.exists() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
        part = self.folder / f"{_PART}{name}"
        try:
            part.write_bytes(data)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._unsynced.add(name)

    def remove(self, names: Iterable[str]) -> None:
        """Takes answers away, the file of failures too, and what was cut off in writing them."""
        for name in (*names, FAILED_NAME):
            for path in (self.folder / name, self.folder / f"{_PART}{name}"):
                path.unlink(missing_ok=True)
        sync_folder(self.folder)

    def write_failures(self, lines: Iterator[Mapping[str, Any]]) -> None:
        """Puts the rows that have no answer into a file of their own; without any there is no such file."""
        first = next(lines, None)
        path = self.folder / FAILED_NAME
        if first is None:
            path.unlink(missing_ok=True)
        else:
            publish_lines(path, (line for part in ((first,), lines) for line in part))

    def sync(self) -> None:
        """Makes the files written so far survive a power cut."""
        for name in self._unsynced:
            descriptor = os.open(self.folder / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._unsynced.clear()
        sync_folder(self.folder)


class OrderedStream:
    """Lines to a stream in the order of their rows, each as soon as all before it are out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0
        self._held: dict[int, Mapping[str, Any]] = {}

    def write(self, index: int, line: Mapping[str, Any]) -> None:
        self._held[index] = line
        while self._next in self._held:
            self._stream.write(as_line(self._held.pop(self._next)))
            self._next += 1
        self._stream.flush()


def answer_texts(result: Result) -> list[str] | None:
    """The texts of a result, or None of a failure."""
    if "error" in result:
        return None
    return [answer["text"] for answer in result["answers"]] if "answers" in result else [result["text"]]
