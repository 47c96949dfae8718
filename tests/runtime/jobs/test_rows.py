"""Input files: the rows they hold, and where what is wrong with them is."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from tuili.errors import InvalidRequestError
from tuili.runtime.jobs.rows import MAX_LINE_BYTES, CountedRows, FileRows


def _read(path: Path, data: bytes) -> list[tuple[str, dict[str, Any]]]:
    path.write_bytes(data)
    rows = list(FileRows(path, name=path.name).rows())
    assert [row.index for row in rows] == list(range(len(rows)))
    return [(row.place, dict(row.values)) for row in rows]


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.txt", "\ufefffirst\r\n\n  \n zweite Zeile ü\nlast".encode()) == [
        ("a.txt:1", {"prompt": "first"}),
        ("a.txt:4", {"prompt": " zweite Zeile ü"}),
        ("a.txt:5", {"prompt": "last"}),
    ]


def test_jsonl_is_an_object_a_line(tmp_path: Path) -> None:
    data = b'{"prompt": "a\\u00fc"}\n\n{"n": 1, "deep": {"k": [1]}}\n'
    assert _read(tmp_path / "a.jsonl", data) == [
        ("a.jsonl:1", {"prompt": "aü"}),
        ("a.jsonl:3", {"n": 1, "deep": {"k": [1]}}),
    ]


def test_tables_have_a_header_and_quoted_cells(tmp_path: Path) -> None:
    data = b'name, text\na,"b, ""c""\nsecond line"\n\nd,e\n'
    assert _read(tmp_path / "a.csv", data) == [
        ("a.csv:3", {"name": "a", "text": 'b, "c"\nsecond line'}),
        ("a.csv:5", {"name": "d", "text": "e"}),
    ]
    assert _read(tmp_path / "a.tsv", b"x\ty\n1\t2\n") == [("a.tsv:2", {"x": "1", "y": "2"})]
    long = b"x" * 200_000  # beyond the limit the csv module begins with
    assert _read(tmp_path / "b.csv", b"x\n" + long + b"\n")[0][1] == {"x": long.decode()}


def test_parquet_rows_come_as_python_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": [f"p{i}" for i in range(600)], "n": list(range(600))})
    parquet.write_table(table, path)
    source = FileRows(path, name="a.parquet")
    rows = list(source.rows())
    assert [dict(row.values) for row in rows] == [{"prompt": f"p{i}", "n": i} for i in range(600)]
    assert (rows[0].place, rows[-1].place) == ("a.parquet:1", "a.parquet:600")
    assert source.identity()["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(InvalidRequestError, match=r"a\.parquet:1: is no Parquet file"):
        list(source.rows())


def test_without_pyarrow_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'tuili\[parquet\]'"):
        _read(tmp_path / "a.parquet", b"PAR1")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"ok\nb\xffd", "a.txt:2: byte 2 of the line is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1,}\n', "a.jsonl:2: must be one JSON object, and is no JSON: "),
        ("a.jsonl", b"[1]", "a.jsonl:1: must be one JSON object, found list '[1]'"),
        ("a.jsonl", b'{"a": NaN}', "a.jsonl:1: must be one JSON object, and is no JSON: NaN is not a JSON number"),
        (
            "a.jsonl",
            b'{"a": ' + b"[" * 100_000,
            "a.jsonl:1: must be one JSON object, and is no JSON: it nests too deep",
        ),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "a.jsonl:1: must be one JSON object, and is no JSON: Exceeds"),
        ("a.jsonl", b'{"a": "\\ud800"}', "a.jsonl:1: text holds half a surrogate pair"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv:3: found 1 cells, the header names 2 columns"),
        ("a.csv", b"a,,b\n", "a.csv:1: column 2 of the header has no name"),
        ("a.csv", b"a,b,a\n", "a.csv:1: the header names column 'a' twice"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv:2: is no well-formed table: "),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        _read(tmp_path / name, data)


def test_a_line_has_a_longest_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_LINE_BYTES >= 1 << 20
    monkeypatch.setattr("tuili.runtime.jobs.rows.MAX_LINE_BYTES", 10)
    with pytest.raises(InvalidRequestError, match=r"a\.txt:2: the line is longer than 10 bytes"):
        _read(tmp_path / "a.txt", b"short\n" + b"x" * 20)


def test_files_that_cannot_be_read_or_told_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"the ending of 'a\.doc' is not known: formats are txt, jsonl"):
        _read(tmp_path / "a.doc", b"")
    with pytest.raises(InvalidRequestError, match="format 'xml' is not known"):
        FileRows(tmp_path / "a.txt", "xml")
    with pytest.raises(InvalidRequestError, match=r"cannot read 'gone\.txt': No such file"):
        list(FileRows(Path("gone.txt")).rows())


def test_the_identity_is_that_of_the_bytes_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a\n1\n")
    source = FileRows(path)
    list(source.rows())
    assert source.identity() == {"sha256": hashlib.sha256(b"a\n1\n").hexdigest(), "format": "csv"}
    counted = CountedRows(3)
    assert [(row.index, dict(row.values)) for row in counted.rows()] == [(0, {}), (1, {}), (2, {})]
    assert counted.identity() == {"count": 3}
