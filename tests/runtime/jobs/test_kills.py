"""Jobs that are killed, cut short and starved of disk: every row is answered exactly once all the same."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.killed_command import KilledCommands

NUM_ROWS, NUM_KILLS = 20, 20
FLAGS = ("--seed", "5", "--quiet", "--prompt", "Write {num:5-40} lines about {prompt}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "m.gguf").write_bytes(b"GGUF")
    (folder / "in.txt").write_text("".join(f"thing {i}\n" for i in range(NUM_ROWS)))
    return folder


@pytest.fixture(scope="module")
def command(folder: Path) -> Iterator[KilledCommands]:
    with KilledCommands(folder) as commands:
        yield commands


def _generate(target: str, *flags: str) -> tuple[str, ...]:
    return ("generate", "m.gguf", "-i", "in.txt", "-o", target, *FLAGS, *flags)


@pytest.fixture(scope="module")
def whole(command: KilledCommands, folder: Path) -> tuple[bytes, int, int]:
    """The output of a job nobody disturbed, and how many calls and writes it took."""
    done = command(*_generate("whole.jsonl"))
    assert done["code"] == 0, done["error"]
    output = (folder / "whole.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in output.splitlines()] == [str(i) for i in range(NUM_ROWS)]
    return output, done["calls"], done["writes"]


def test_killed_anywhere_each_row_is_answered_exactly_once(
    command: KilledCommands, folder: Path, whole: tuple[bytes, int, int]
) -> None:
    """Twenty kills: at a random call of any thread, or in the middle of a random write."""
    output, num_calls, num_writes = whole
    generator = random.Random(20)
    num_kills = num_jobs = num_resumed = 0
    while num_kills < NUM_KILLS:
        target = f"killed{num_jobs}.jsonl"
        code = None
        while code != 0:
            is_cut = generator.random() < 0.3
            cut = (generator.randint(1, num_writes), generator.random())
            how = {"cut_write": cut} if is_cut else {"kill_at": generator.randint(1, num_calls)}
            journal = folder / f"{target}.job" / "journal.jsonl"
            num_resumed += journal.exists() and len(journal.read_bytes().splitlines()) > 1
            done = command(*_generate(target), **how)
            code = done["code"]
            assert code in (0, -signal.SIGKILL), done["error"]
            num_kills += code != 0
            if code != 0:
                assert not (folder / target).exists() or (folder / target).read_bytes() == output
        assert hashlib.sha256((folder / target).read_bytes()).digest() == hashlib.sha256(output).digest()
        num_jobs += 1
    assert num_resumed >= NUM_KILLS // 2  # else the kills say nothing


def test_a_folder_of_answers_survives_kills_too(command: KilledCommands, folder: Path) -> None:
    def generate(target: str) -> tuple[str, ...]:
        named = ("--output-dir", target, "--name", "seed_{i:02}.txt")
        return ("generate", "m.gguf", "-i", "in.txt", *named, *FLAGS)

    done = command(*generate("answers"))
    assert done["code"] == 0, done["error"]
    expected = {path.name: path.read_bytes() for path in (folder / "answers").glob("*.txt")}
    assert sorted(expected) == [f"seed_{i:02}.txt" for i in range(NUM_ROWS)]
    generator = random.Random(4)
    for share in (0.5, 0.8, 0.95):
        killed = command(*generate("killed"), kill_at=int(done["calls"] * share * generator.random()) + 1)
        assert killed["code"] in (0, -signal.SIGKILL)
        for path in (folder / "killed").glob("*.txt"):
            assert path.read_bytes() == expected[path.name]
    assert command(*generate("killed"))["code"] == 0
    assert {path.name: path.read_bytes() for path in (folder / "killed").glob("*.txt")} == expected
    assert {path.name for path in (folder / "killed").iterdir()} - expected.keys() == {".job"}


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_a_full_disk_stops_with_a_message_and_resumes(
    command: KilledCommands, folder: Path, whole: tuple[bytes, int, int], share: float
) -> None:
    target = f"full{share}.jsonl"
    journal = folder / "whole.jsonl.job" / "journal.jsonl"
    full = command(*_generate(target), max_file_bytes=int(journal.stat().st_size * share))
    assert full["code"] == 1
    (message,) = full["error"].splitlines()
    assert message.startswith(f"error: the disk of '{target}' is full: free some space")
    assert not (folder / target).exists()
    kept = (folder / f"{target}.job" / "journal.jsonl").read_bytes() if share > 0.1 else b"\n"
    assert kept.endswith(b"\n"), "half a line stays"
    if share > 0.1:
        assert f": {len(kept.splitlines()) - 1} of {NUM_ROWS} rows are kept, the same command goes on" in message
    assert command(*_generate(target))["code"] == 0
    assert (folder / target).read_bytes() == whole[0]
