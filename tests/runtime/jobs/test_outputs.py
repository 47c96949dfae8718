"""Where answers end up: whole files, in order, in names that are safe."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tuili.errors import InvalidRequestError
from tuili.runtime.jobs.outputs import AnswerFolder, FileNames, OrderedStream, as_line, publish_lines
from tuili.runtime.jobs.template import Template


def test_a_line_is_one_line_for_every_reader() -> None:
    value = {"text": "ü\n\u2028\u2029\x85\x0b\x1c\r end"}
    line = as_line(value)
    assert line.splitlines() == [line[:-1]]
    assert json.loads(line) == value
    assert "ü" in line


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"

    def failing() -> Iterator[Mapping[str, Any]]:
        yield {"id": 1}
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError):
        publish_lines(path, failing())
    assert list(path.parent.iterdir()) == []
    publish_lines(path, [{"id": 1}, {"id": 2}])
    with pytest.raises(RuntimeError):
        publish_lines(path, failing())
    assert path.read_text() == '{"id": 1}\n{"id": 2}\n'
    assert list(path.parent.iterdir()) == [path]


def test_names_hold_values_and_the_number_of_the_answer() -> None:
    names = FileNames(Template.parse("{topic}_{i:02}_{n}.txt", "name"))
    assert names.of({"topic": "a b", "i": 3}, 2) == ["a b_03_0.txt", "a b_03_1.txt"]
    with pytest.raises(InvalidRequestError, match=r"name must hold \{n\}.*a row has 2 answers"):
        FileNames(Template.parse("{i}.txt", "name")).of({"i": 3}, 2)


@pytest.mark.parametrize("value", ["", "..", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "failed.jsonl"])
def test_values_that_make_no_plain_file_name_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError, match="not allowed as a file name"):
        FileNames(Template.parse("{value}", "name")).of({"value": value}, 1)


def test_files_of_a_folder_are_written_once_and_failures_told(tmp_path: Path) -> None:
    folder = AnswerFolder(tmp_path)
    folder.write("a.txt", "ü")
    written = (tmp_path / "a.txt").stat().st_mtime_ns
    folder.write("a.txt", "ü")
    assert (tmp_path / "a.txt").stat().st_mtime_ns == written
    folder.write("a.txt", "o")
    assert (tmp_path / "a.txt").read_text() == "o"
    folder.write_failures(iter([{"id": 1}, {"id": 2}]))
    assert (tmp_path / "failed.jsonl").read_text() == '{"id": 1}\n{"id": 2}\n'
    folder.write_failures(iter([]))
    folder.sync()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    folder.remove(["a.txt", "never written"])
    assert list(tmp_path.iterdir()) == []


def test_a_stream_holds_lines_back_until_their_turn() -> None:
    stream = io.StringIO()
    ordered = OrderedStream(stream)
    ordered.write(1, {"id": 1})
    ordered.write(3, {"id": 3})
    assert stream.getvalue() == ""
    ordered.write(0, {"id": 0})
    assert stream.getvalue() == '{"id": 0}\n{"id": 1}\n'
    ordered.write(2, {"id": 2})
    assert [json.loads(line)["id"] for line in stream.getvalue().splitlines()] == [0, 1, 2, 3]
