"""The journal: what is appended stays, what was torn is healed, what is damaged is not guessed at."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuili.errors import ConflictError, InvalidRequestError, ModelFileError
from tuili.runtime.jobs.journal import Journal, compare_headers, locked, require_same

HEADER = {"version": 1, "settings": {"prompt": "a"}}


def _begun(folder: Path, num_rows: int = 3) -> Path:
    Journal.create(folder, HEADER)
    with Journal(folder) as journal:
        for i in range(num_rows):
            journal.append(f"r{i}", {"text": f"answer {i} ü\n"}, is_failure=i == 1)
    return folder / "journal.jsonl"


def _answers(folder: Path) -> dict[str, str]:
    with Journal(folder) as journal:
        assert journal.header == HEADER
        return {row_id: journal.read(row_id)["text"] for row_id in journal.entries}


def test_what_is_appended_is_there_the_next_time(tmp_path: Path) -> None:
    _begun(tmp_path)
    with Journal(tmp_path) as journal:
        assert [entry.is_failure for entry in journal.entries.values()] == [False, True, False]
        journal.append("r1", {"text": "better"}, is_failure=False)
        assert journal.read("r1") == {"text": "better"}
    assert _answers(tmp_path) == {"r0": "answer 0 ü\n", "r1": "better", "r2": "answer 2 ü\n"}


def test_a_torn_last_line_is_taken_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = _begun(tmp_path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert list(_answers(tmp_path)) == ["r0", "r1"], cut
        assert path.read_bytes() == whole[:last]
    for garbage in (b"\0" * 50, b"\n", b'{"crc":"00000000","record":{}}\n', b"x\ny\n"):
        path.write_bytes(whole + garbage)
        assert list(_answers(tmp_path)) == ["r0", "r1", "r2"]
        assert path.read_bytes() == whole


def test_damage_elsewhere_stops_with_the_line(tmp_path: Path) -> None:
    path = _begun(tmp_path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for number, line in enumerate(lines[:-1]):
        damaged = line.replace(b"r", b"R", 1) if number else line.replace(b"prompt", b"Prompt")
        path.write_bytes(b"".join([*lines[:number], damaged, *lines[number + 1 :]]))
        with pytest.raises(ModelFileError, match=rf"journal\.jsonl', line {number + 1}, is damaged.*--restart"):
            Journal(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match="line 1, is damaged"):
        Journal(tmp_path)


def test_a_write_that_fails_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _begun(tmp_path)
    before, write = path.read_bytes(), os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with Journal(tmp_path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", half)
            with pytest.raises(OSError, match="No space left"):
                journal.append("r3", {"text": "x" * 100}, is_failure=False)
        assert path.read_bytes() == before
        assert "r3" not in journal.entries
        journal.append("r3", {"text": "now"}, is_failure=False)
    assert _answers(tmp_path)["r3"] == "now"


def test_it_is_synced_at_most_a_second_late_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal.create(tmp_path, HEADER)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    now = 0.0
    with Journal(tmp_path, clock=lambda: now) as journal:
        for i in range(30):
            now += 0.1
            journal.append(str(i), {}, is_failure=False)
        assert len(synced) in (2, 3)
        journal.append("last", {}, is_failure=False)
    assert len(synced) in (3, 4)


def test_only_one_process_works_on_a_job(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tuili.runtime.jobs.journal import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match="another process is working on the job"), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):
        pass


def test_what_changed_is_told(tmp_path: Path) -> None:
    new = {"version": 1, "settings": {"prompt": "b", "temperature": 0.5}}
    assert compare_headers(HEADER, HEADER) == []
    assert compare_headers(HEADER, new) == ["prompt was 'a' and is 'b'", "temperature was not given and is 0.5"]
    require_same(HEADER, HEADER, tmp_path, 7)
    with pytest.raises(InvalidRequestError, match=r"prompt was 'a' and is 'b'; .*--restart, which drops its 7 answers"):
        require_same(HEADER, new, tmp_path, 7)
