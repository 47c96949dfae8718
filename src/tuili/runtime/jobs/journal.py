"""The journal of a job: one line for each answer, appended, checksummed and synced. Knows no prompts and no models.

    JOB/journal.jsonl   {"crc":"89abcdef","record":{...}}   first the header, then one record for each answer
    JOB/lock            held by the process that works on the job

A line that was cut off by a crash can only be the last: it is taken off, and its row is answered again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tuili.errors import ConflictError, InvalidRequestError, ModelFileError
from tuili.store.durable import make_folder, sync_folder, write_atomic

SYNC_INTERVAL_S = 1.0
_PREFIX, _MIDDLE, _SUFFIX = b'{"crc":"', b'","record":', b"}\n"
_CRC_START = len(_PREFIX)
_RECORD_START = _CRC_START + 8 + len(_MIDDLE)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the answer of a row is."""

    offset: int
    is_failure: bool


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a job's lock, which the system takes back from a process that dies. A folder without a journal goes again.

    Raises ConflictError when another process works on the job.
    """
    from filelock import FileLock, Timeout

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConflictError(f"another process is working on the job in {str(folder)!r}") from None
    try:
        yield
    finally:
        if not has_journal(folder):
            Path(lock.lock_file).unlink(missing_ok=True)  # held: whoever gets it now sees that it has no name
            with contextlib.suppress(OSError):  # somebody put something into it
                for path in dict.fromkeys([folder, *made]):
                    path.rmdir()
        lock.release()


def has_journal(folder: Path) -> bool:
    return _file(folder).exists()


def discard(folder: Path) -> None:
    """Takes a job's journal away; the lock stays."""
    _file(folder).unlink(missing_ok=True)
    sync_folder(folder)


class Journal(AbstractContextManager["Journal"]):
    """Records by row id. Open it with the job's lock held; it is also a context manager.

    Raises ModelFileError naming the line when the file is damaged elsewhere than at its end.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.entries: dict[str, Entry] = {}
        self._path = _file(folder)
        self._clock = clock
        self._end = 0
        self.header = self._recover()
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
        self._file: BinaryIO = self._path.open("rb")
        self._synced_s = clock()
        self._is_dirty = False

    @classmethod
    def create(cls, folder: Path, header: Mapping[str, Any]) -> None:
        """Begins a journal; afterwards there is a whole header or no journal."""
        write_atomic(_file(folder), _encoded(header))

    def append(
        self, row_id: str, result: Mapping[str, Any], *, is_failure: bool, file_names: Sequence[str] = ()
    ) -> None:
        """Adds a row's answer, which takes the place of an earlier one. What was added is safe within a second.

        file_names are the files that the answer is about to be written to.
        Raises OSError when it cannot be written; the journal is then as before.
        """
        line = _encoded({"id": row_id, "failed": is_failure, "files": file_names, "result": result})
        try:
            self._write(line)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self.entries[row_id] = Entry(self._end, is_failure)
        self._end += len(line)
        self._is_dirty = True
        if self._clock() - self._synced_s >= SYNC_INTERVAL_S:
            self.sync()

    def read(self, row_id: str) -> Mapping[str, Any]:
        """The result of a row that has one."""
        result: Mapping[str, Any] = self._record(row_id)["result"]
        return result

    def file_names(self) -> Iterator[str]:
        """The files that the answers were written to. Raises KeyError when the journal is of a version without them."""
        return (name for row_id in self.entries for name in self._record(row_id)["files"])

    def sync(self) -> None:
        """Makes everything appended so far survive a power cut."""
        if self._is_dirty:
            os.fsync(self._descriptor)
            self._is_dirty = False
        self._synced_s = self._clock()

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._descriptor)
            self._file.close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(*() if kind is None else (OSError,)):  # a full disk has been told of once
            self.close()

    def _record(self, row_id: str) -> dict[str, Any]:
        self._file.seek(self.entries[row_id].offset)
        record = _decoded(self._file.readline())
        assert record is not None
        assert record["id"] == row_id
        return record

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            count = os.write(self._descriptor, rest)
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[count:]

    def _recover(self) -> Mapping[str, Any]:
        """Reads what is there and takes a torn end off. Gives the header."""
        header: Mapping[str, Any] | None = None
        torn: int | None = None
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                record = _decoded(line)
                if record is None:
                    torn = torn or number
                elif torn is not None:
                    raise self._damaged(torn)
                elif header is None:
                    header = record
                else:
                    self.entries[record["id"]] = Entry(self._end, record["failed"])
                if torn is None:
                    self._end += len(line)
        if header is None:
            raise self._damaged(1)
        if torn is not None:
            os.truncate(self._path, self._end)
        return header

    def _damaged(self, line: int) -> ModelFileError:
        return ModelFileError(
            f"{str(self._path)!r}, line {line}, is damaged: its checksum does not fit. Bring back a copy of the "
            "file, or begin anew with --restart"
        )


def _file(folder: Path) -> Path:
    return folder / "journal.jsonl"


def _encoded(record: Mapping[str, Any]) -> bytes:
    data = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str).encode()
    return b"".join((_PREFIX, b"%08x" % zlib.crc32(data), _MIDDLE, data, _SUFFIX))


def _decoded(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None when it is not whole."""
    if not line.endswith(_SUFFIX) or not line.startswith(_PREFIX):
        return None
    data = line[_RECORD_START : -len(_SUFFIX)]
    if line[_CRC_START:_RECORD_START] != b"%08x" % zlib.crc32(data) + _MIDDLE:
        return None
    record: dict[str, Any] = json.loads(data)
    return record


def compare_headers(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between the settings a job was begun with and those given now, one phrase each."""
    changes = []
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            changes += compare_headers(was, now)
        elif was != now:
            changes.append(f"{name} was {_shown(was)} and is {_shown(now)}")
    return changes


def _shown(value: object) -> str:
    return "not given" if value is None else f"{value!r:.120}"


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path, num_answers: int) -> None:
    """Raises InvalidRequestError saying what changed and how to begin anew, unless nothing did."""
    was, now = old.get("version"), new.get("version")
    if was != now:
        raise InvalidRequestError(
            f"the job in {str(folder)!r} was begun by another version of tuili: its journal has format {was!r:.20}, "
            f"and this is {now}. Finish it with that version, or begin anew with --restart, which drops its "
            f"{num_answers} answers",
            param="restart",
        )
    if changes := compare_headers(old, new):
        raise InvalidRequestError(
            f"the job in {str(folder)!r} was begun otherwise: {'; '.join(changes)}. Go on with what it was, or begin "
            f"anew with --restart, which drops its {num_answers} answers",
            param="restart",
        )
