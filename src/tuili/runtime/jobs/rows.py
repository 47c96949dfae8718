"""What a job works through: rows, from a file of lines, objects or a table, or simply counted.

Files are read as streams, as often as needed. Knows no prompts and no models.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuili.checks import first_doubled
from tuili.errors import InvalidRequestError

MAX_LINE_BYTES = 64 << 20
_BOM = "\ufeff"

Numbered = Generator[tuple[int, Mapping[str, Any]], None, None]  # line and columns


@dataclass(frozen=True, slots=True)
class Row:
    """One unit of work. index counts from 0; place is what messages say of where it stands."""

    index: int
    place: str
    values: Mapping[str, Any]


class RowSource(Protocol):
    """Rows that can be read again. `identity` is known once they were read to the end."""

    @property
    def name(self) -> str: ...

    def rows(self) -> Generator[Row, None, None]:
        """Raises InvalidRequestError saying where a row is malformed, what was found and what is allowed."""

    def identity(self) -> Mapping[str, Any]:
        """What tells this input from another."""


class CountedRows:
    """Rows without columns, for prompts that differ in random numbers or in nothing."""

    name = "count"

    def __init__(self, count: int) -> None:
        self._count = count

    def rows(self) -> Generator[Row, None, None]:
        return (Row(i, f"row {i}", {}) for i in range(self._count))

    def identity(self) -> Mapping[str, Any]:
        return {"count": self._count}


class FileRows:
    """Rows of a file. `file_format` is one of FORMATS, or None to go by the name's ending.

    Raises InvalidRequestError when neither says what it is.
    """

    def __init__(self, path: Path, file_format: str | None = None, name: str | None = None) -> None:
        self.name = name or str(path)
        self.file_format = file_format or format_of(path) or ""
        if self.file_format not in FORMATS:
            found = f"format {file_format!r}" if file_format else f"the ending of {self.name!r}"
            raise InvalidRequestError(
                f"{found} is not known: formats are {', '.join(FORMATS)} (--format)", param="format"
            )
        self._path = path
        self._sha256: str | None = None

    def rows(self) -> Generator[Row, None, None]:
        index = 0
        with closing(FORMATS[self.file_format](self)) as numbered:
            for line, values in numbered:
                yield Row(index, f"{self.name}:{line}", values)
                index += 1

    def identity(self) -> Mapping[str, Any]:
        assert self._sha256 is not None, "read to the end first"
        return {"sha256": self._sha256, "format": self.file_format}

    def error(self, line: int, message: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self.name}:{line}: {message}", param="input")

    def read_bytes(self) -> Path:
        """The file for readers that need it whole; takes its checksum."""
        with self._opened() as file:
            self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return self._path

    def lines(self) -> Iterator[tuple[int, str]]:
        """(number from 1, text with its line break) of every line, a mark of byte order taken off."""
        digest = hashlib.sha256()
        number = 0
        with self._opened() as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                digest.update(line)
                if len(line) > MAX_LINE_BYTES:
                    raise self.error(number, f"the line is longer than {MAX_LINE_BYTES} bytes, the most allowed")
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise self.error(number, f"byte {error.start + 1} of the line is not UTF-8") from error
                yield number, text.removeprefix(_BOM) if number == 1 else text
        self._sha256 = digest.hexdigest()

    def _opened(self) -> Any:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise InvalidRequestError(f"cannot read {self.name!r}: {error.strerror}", param="input") from error


def _text_rows(source: FileRows) -> Numbered:
    """One prompt a line; lines without text are skipped."""
    for number, line in source.lines():
        if line.strip():
            yield number, {"prompt": line.rstrip("\r\n")}


def _json_rows(source: FileRows) -> Numbered:
    """One JSON object a line; empty lines are skipped."""
    for number, line in source.lines():
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
            if "\\u" in line:
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # a ValueError too
            raise source.error(number, "text holds half a surrogate pair, which is no character") from error
        except (ValueError, RecursionError) as error:
            raise source.error(number, f"must be one JSON object, and is no JSON: {_reason(error)}") from error
        if not isinstance(value, dict):
            raise source.error(number, f"must be one JSON object, found {type(value).__name__} {line.strip()!r:.80}")
        yield number, value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "it nests too deeply" if isinstance(error, RecursionError) else str(error)


def _table_rows(delimiter: str) -> Callable[[FileRows], Numbered]:
    def read(source: FileRows) -> Numbered:
        """A table whose first line names the columns; quotes as in RFC 4180."""
        csv.field_size_limit(MAX_LINE_BYTES)
        reader = csv.reader((line for _, line in source.lines()), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        try:
            for cells in reader:
                if not cells:
                    continue
                if header is None:
                    header = _checked_header(cells, source, reader.line_num)
                elif len(cells) != len(header):
                    raise source.error(
                        reader.line_num, f"found {len(cells)} cells, the header names {len(header)} columns"
                    )
                else:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise source.error(reader.line_num, f"is no well-formed table: {error}") from error

    return read


def _checked_header(cells: list[str], source: FileRows, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names):
        raise source.error(line, f"column {names.index('') + 1} of the header has no name")
    if twice := first_doubled(names):
        raise source.error(line, f"the header names column {twice!r} twice")
    return names


def _parquet_rows(source: FileRows) -> Numbered:
    """A Parquet file, some rows at a time. Their number stands for the line."""
    path = source.read_bytes()
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InvalidRequestError(
            "reading Parquet needs pyarrow: pip install 'tuili[parquet]'", param="input"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            values = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
            yield from enumerate(values, start=1)
    except (ArrowException, OSError) as error:
        raise source.error(1, f"is no Parquet file that can be read: {error!s:.200}") from error


FORMATS: Mapping[str, Callable[[FileRows], Numbered]] = {
    "txt": _text_rows,
    "jsonl": _json_rows,
    "csv": _table_rows(","),
    "tsv": _table_rows("\t"),
    "parquet": _parquet_rows,
}
_ENDINGS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}


def format_of(path: Path) -> str | None:
    """The format that a name's ending says."""
    return _ENDINGS.get(path.suffix.lower())
