"""`tuili generate`: what is read, what is written, what is refused, how it ends."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.fake_backend import FakeBackend
from support.small_model import small_model
from tuili.cli import generate_display
from tuili.cli.commands import generate as generate_command
from tuili.cli.commands import run as run_command
from tuili.cli.generate_display import format_seconds, showing
from tuili.cli.sampling_options import SAMPLING_NAMES
from tuili.errors import InvalidRequestError
from tuili.runtime.front.in_flight import Inbox
from tuili.runtime.jobs.journal import Journal, locked
from tuili.runtime.jobs.runner import FinishedRow, JobProgress
from tuili.runtime.loading.pipeline import Pipeline

from .conftest import Cli, Generate


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_rows(count: int, path: str = "in.txt") -> Path:
    Path(path).write_text("".join(f"thing {i}\n" for i in range(count)))
    return Path(path)


def test_every_row_is_answered_in_the_order_of_the_input(generate: Generate, loaded: list[Pipeline]) -> None:
    _write_rows(30)
    outcome = generate("-i", "in.txt", "-o", "out.jsonl", "--seed", "1")
    assert (outcome.code, outcome.out) == (0, "")
    lines = _lines(Path("out.jsonl"))
    assert [line["id"] for line in lines] == [str(i) for i in range(30)]
    assert [line["prompt"] for line in lines] == [f"thing {i}" for i in range(30)]
    assert all(line["text"] and line["num_output_tokens"] <= 8 for line in lines)
    assert len({line["seed"] for line in lines}) == 30
    *_, summary, where = outcome.err.splitlines()
    assert re.fullmatch(
        r"note: 30 rows answered in [\d.]+ s, [\d.]+ s a row; \d+ tokens, [\d.]+ tokens/s; an answer took [\d.]+ s on "
        r"average from its first token to its last, [\d.]+ s at most; seed 1",
        summary,
    )
    assert where == "note: 30 rows are in out.jsonl"
    again = generate("-i", "in.txt", "-o", "other.jsonl", "--seed", "1", "--quiet")
    assert "/30" not in again.err
    assert _lines(Path("other.jsonl")) == lines
    assert len(loaded) == 2
    assert all(isinstance(model.backend, FakeBackend) and model.backend.closed for model in loaded)


def test_a_finished_job_is_not_done_again(generate: Generate, loaded: list[Pipeline]) -> None:
    _write_rows(3)
    flags = ("-i", "in.txt", "-o", "out.jsonl")
    generate(*flags)
    output = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    outcome = generate(*flags)
    assert outcome.code == 0
    assert outcome.err.startswith("note: 3 of 3 rows are answered already (in out.jsonl.job)\n")
    assert Path("out.jsonl").read_bytes() == output
    assert len(loaded) == 1


def test_another_input_and_other_flags_are_refused_until_restarted(generate: Generate, loaded: list[Pipeline]) -> None:
    _write_rows(3)
    flags = ("-i", "in.txt", "-o", "out.jsonl")
    generate(*flags)
    outcome = generate(*flags, "--temperature", "0.5")
    assert (outcome.code, outcome.err) == (
        2,
        "error: the job in 'out.jsonl.job' was begun otherwise: temperature was not given and is 0.5. Go on with what "
        "it was, or begin anew with --restart, which drops its 3 answers\n",
    )
    assert "seed was " in generate(*flags, "--seed", "3").err
    modified_ns = Path("m.gguf").stat().st_mtime_ns
    Path("m.gguf").write_bytes(b"GGUF2")
    assert "model_bytes was 4 and is 5" in generate(*flags).err
    Path("m.gguf").write_bytes(b"GGVF")
    assert re.search(r"begun otherwise: model_digest was '\w{64}' and is '\w{64}'", generate(*flags).err)
    Path("m.gguf").write_bytes(b"GGUF")
    os.utime("m.gguf", ns=(modified_ns, modified_ns))
    Path("in.txt").write_text("thing 0\nthing 1\nthing two\n")
    assert re.search(r"begun otherwise: sha256 was '\w{64}' and is '\w{64}'", generate(*flags).err)
    _write_rows(4)
    assert "num_rows was 3 and is 4" in generate(*flags).err
    assert len(loaded) == 1
    assert generate(*flags, "--restart").code == 0
    assert len(_lines(Path("out.jsonl"))) == 4


def test_what_loading_finds_wrong_is_told_before_a_restart_drops_anything(
    generate: Generate, loaded: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Pipeline:
        raise InvalidRequestError("max_model_len must be less")

    _write_rows(2)
    flags = ("-i", "in.txt", "-o", "out.jsonl")
    generate(*flags)
    kept = {path: path.read_bytes() for path in Path("out.jsonl.job").iterdir() if path.is_file()}
    with monkeypatch.context() as changed:
        changed.setattr("tuili.runtime.loading.loading.open_model", refuse)
        outcome = generate(*flags, "--restart")
    assert (outcome.code, outcome.err) == (2, "error: max_model_len must be less\n")
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(_lines(Path("out.jsonl"))) == 2


def test_rows_may_come_from_tables_objects_and_standard_input(generate: Generate) -> None:
    with Path("in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "word"), ("a", "one"), ("b", "two, three")])
    prompt = ("--prompt", "Say {word}", "--raw", "-q")
    assert generate("-i", "in.csv", "-o", "csv.jsonl", *prompt).code == 0
    assert [(line["id"], line["prompt"]) for line in _lines(Path("csv.jsonl"))] == [
        ("a", "Say one"),
        ("b", "Say two, three"),
    ]
    Path("in.jsonl").write_text('{"word": "x", "key": 7}\n')
    assert generate("-i", "in.jsonl", "-o", "objects.jsonl", "--id-column", "key", *prompt).code == 0
    assert _lines(Path("objects.jsonl"))[0]["id"] == "7"
    outcome = generate("-i", "-", "-q", stdin=b"from a pipe\n")
    assert json.loads(outcome.out)["prompt"] == "from a pipe"
    assert outcome.err.endswith(" repeats them\n")
    outcome = generate("-i", "-", "--format", "jsonl", "-q", "--prompt", "{word}", stdin=b'{"word": 1}\n{"word"}\n')
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: standard input:2: must be one JSON object, and is no JSON")


def test_a_named_pipe_is_read_once_and_kept(generate: Generate) -> None:
    os.mkfifo("pipe.jsonl")
    rows = "".join(f'{{"word": "{i}"}}\n' for i in range(5))
    writer = threading.Thread(target=lambda: Path("pipe.jsonl").write_text(rows))
    writer.start()
    flags = ("--prompt", "Say {word}", "-o", "out.jsonl", "-q")  # the ending says what it holds
    assert generate("-i", "pipe.jsonl", *flags).code == 0
    writer.join()
    assert [line["prompt"] for line in _lines(Path("out.jsonl"))] == [f"Say {i}" for i in range(5)]


@pytest.mark.parametrize("data", [b'{"prompt": "a"}\n', b'\xef\xbb\xbf\n { "custom_id":', b"{}\n"])
def test_objects_from_a_pipe_are_not_taken_for_prompts(generate: Generate, loaded: list[Pipeline], data: bytes) -> None:
    outcome = generate("-i", "-", "-q", stdin=data)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "error: standard input begins with a JSON object: say --format jsonl, or --format txt to ask its lines as they "
        "are\n"
    )
    assert loaded == []


def test_an_object_may_be_meant_as_text(generate: Generate) -> None:
    outcome = generate("-i", "-", "-q", "--format", "txt", stdin=b'{"prompt": "a"}\n')
    assert json.loads(outcome.out)["prompt"] == '{"prompt": "a"}'


def test_a_job_from_a_pipe_goes_on_too(generate: Generate, loaded: list[Pipeline]) -> None:
    for _ in range(2):
        assert generate("-i", "-", "-o", "out.jsonl", "-q", stdin=b"a\nb\n").code == 0
    assert len(loaded) == 1


@pytest.mark.parametrize(
    "flag", ["--prompt", "--system", "--name", "--id-column", "--backend", "--stop", "--samplers", "--model"]
)
def test_flags_that_are_no_text_are_refused_and_leave_nothing(
    cli: Cli, loaded: list[Pipeline], tmp_path: Path, flag: str
) -> None:
    _write_rows(2)
    before = sorted(tmp_path.rglob("*"))
    model = "\udcff.gguf" if flag == "--model" else "m.gguf"
    flags = () if flag == "--model" else (flag, "a\udcff{i}")
    to = ("--output-dir", "out", *(() if flag == "--name" else ("--name", "{i}.txt")))
    outcome = cli("generate", model, "-i", "in.txt", *to, *flags)
    name = flag.strip("-").replace("-", "_")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {name} must be Unicode text without lone surrogates, got '")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_without_a_template_completes_and_takes_no_system_text(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_rows(2)
    monkeypatch.setattr("tuili.runtime.loading.loading.open_model", lambda *_: small_model(template=None))
    outcome = generate("-i", "in.txt", "-o", "out.jsonl")
    assert outcome.code == 0
    assert outcome.err.startswith("note: small has no chat template: completing prompts as they are\n")
    assert [line["num_prompt_tokens"] for line in _lines(Path("out.jsonl"))] == [7, 7]
    outcome = generate("-i", "in.txt", "-o", "other.jsonl", "--system", "s")
    assert (outcome.code, outcome.err) == (2, "error: system needs a chat template, and this model has none\n")


def test_without_a_file_rows_are_counted_and_the_stream_is_in_order(generate: Generate) -> None:
    flags = ("--count", "20", "--prompt", "Write {num:5-40} lines", "--seed", "2", "-q")
    outcome = generate(*flags)
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(20)]
    assert len({line["prompt"] for line in lines}) > 10
    assert all(re.fullmatch(r"Write (\d|[1-3]\d|40) lines", line["prompt"]) for line in lines)
    assert generate(*flags).out == outcome.out
    assert generate(*flags[:-2], "3").out != outcome.out


def test_answers_may_be_files_of_their_own(generate: Generate) -> None:
    _write_rows(3)
    flags = ("--output-dir", "answers", "--name", "seed_{i}.txt", "--seed", "1")
    assert generate("-i", "in.txt", *flags).code == 0
    assert sorted(path.name for path in Path("answers").iterdir()) == [".job", "seed_0.txt", "seed_1.txt", "seed_2.txt"]
    generate("-i", "in.txt", "-o", "out.jsonl", "--seed", "1")
    texts = [Path(f"answers/seed_{i}.txt").read_text() for i in range(3)]
    assert texts == [line["text"] for line in _lines(Path("out.jsonl"))]
    Path("answers/seed_1.txt").write_text("spoiled")
    assert generate("-i", "in.txt", *flags).code == 0
    assert Path("answers/seed_1.txt").read_text() == texts[1]


def test_a_file_of_failures_that_no_job_wrote_stays(generate: Generate, loaded: list[Pipeline]) -> None:
    Path("answers").mkdir()
    Path("answers/failed.jsonl").write_text("precious")
    outcome = generate("--count", "2", "-p", "hi", "--output-dir", "answers", "--name", "{i}.txt")
    assert outcome.code == 2
    assert "the file 'failed.jsonl' is there already, and no job of ours wrote it" in outcome.err
    assert Path("answers/failed.jsonl").read_text() == "precious"
    assert loaded == []


def test_a_folder_begun_anew_holds_no_answers_of_the_old_job(generate: Generate) -> None:
    flags = ("-p", "hi{i}", "--output-dir", "answers", "--restart", "--n", "2", "--name")
    assert generate("--count", "4", *flags, "{i}_{n}.txt").code == 0
    for name in ("mine.txt", ".new-3_1.txt", "failed.jsonl"):  # a neighbour's, a write cut off, an old failure
        Path("answers", name).write_text("x")
    assert generate("--count", "2", *flags, "{n}-{i}.txt").code == 0
    left = [".job", "0-0.txt", "0-1.txt", "1-0.txt", "1-1.txt", "mine.txt"]
    assert sorted(path.name for path in Path("answers").iterdir()) == left


def test_answers_that_cannot_be_told_from_others_are_not_dropped(generate: Generate) -> None:
    flags = ("-p", "hi", "--output-dir", "answers", "--name", "{i}.txt")
    assert generate("--count", "3", *flags).code == 0
    journal = Path("answers/.job/journal.jsonl")
    whole = journal.read_bytes()
    older = whole.splitlines(keepends=True)[0].replace(b'"version":2', b'"version":1')
    data = older[older.index(b'{"version"') : -2]
    journal.write_bytes(b'{"crc":"%08x","record":%b}\n' % (zlib.crc32(data), data))
    with Journal(journal.parent) as begun:
        assert begun.header["version"] == 1
    assert (
        "begun by another version of tuili: its journal has format 1, and this is 2"
        in generate("--count", "3", *flags).err
    )
    record = b'{"id":"0","failed":false,"result":{"text":"x"}}'
    journal.write_bytes(journal.read_bytes() + b'{"crc":"%08x","record":%b}\n' % (zlib.crc32(record), record))
    outcome = generate("--count", "1", *flags, "--restart")
    assert outcome.code == 2
    assert (
        "cannot be dropped: another version of tuili began it, so which files in 'answers' are its own" in outcome.err
    )
    journal.write_bytes(whole.replace(b'"failed"', b'"Failed"', 1))
    assert "cannot be dropped: its journal is damaged" in generate("--count", "1", *flags, "--restart").err
    assert len(list(Path("answers").glob("*.txt"))) == 3


def test_a_row_may_have_several_answers(generate: Generate) -> None:
    _write_rows(2)
    assert generate("-i", "in.txt", "-o", "out.jsonl", "--n", "3", "--seed", "1").code == 0
    lines = _lines(Path("out.jsonl"))
    assert [len(line["answers"]) for line in lines] == [3, 3]
    assert len({answer["text"] for line in lines for answer in line["answers"]}) > 3
    folder = ("-i", "in.txt", "--output-dir", "answers", "--n", "3", "--seed", "1", "--name")
    assert "name must hold {n}" in generate(*folder, "{i}.txt").err
    assert generate(*folder, "{i}_{n}.txt").code == 0
    texts = [Path(f"answers/{i}_{n}.txt").read_text() for i in range(2) for n in range(3)]
    assert texts == [answer["text"] for line in lines for answer in line["answers"]]


def test_an_openai_batch_file_is_answered_as_openai_would(generate: Generate) -> None:
    bodies = [{"messages": [{"role": "user", "content": f"hello {i}"}], "max_tokens": 3} for i in range(3)]
    batch = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt", **body}}
        for i, body in enumerate(bodies)
    ]
    batch.append({"custom_id": "p", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x " * 200}})
    Path("batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in batch))
    outcome = generate("-i", "batch.jsonl", "-o", "out.jsonl")
    assert outcome.code == 3
    assert "note: row 'p' failed: " in outcome.err
    lines = _lines(Path("out.jsonl"))
    assert [line["custom_id"] for line in lines] == ["c0", "c1", "c2", "p"]
    assert [line["response"]["status_code"] for line in lines] == [200, 200, 200, 400]
    assert lines[0]["response"]["body"]["usage"]["completion_tokens"] <= 3
    assert lines[3]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert "batch.jsonl is a batch file" in generate("-i", "batch.jsonl", "--system", "s").err


def test_failed_rows_are_recorded_and_may_be_tried_again(
    generate: Generate, loaded: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_rows(12)
    flags = ("-i", "in.txt", "-o", "out.jsonl", "--seed", "1")
    with monkeypatch.context() as broken:
        broken.setattr(
            "tuili.runtime.loading.loading.open_model",
            lambda *_: small_model(FakeBackend(fail_on={3, 9})),
            raising=True,
        )
        outcome = generate(*flags)
    assert outcome.code == 3
    failed = [line["id"] for line in _lines(Path("out.jsonl")) if "error" in line]
    assert 0 < len(failed) < 12
    assert outcome.err.endswith(f", {len(failed)} of them failed: --retry-failed tries them again\n")
    assert generate(*flags).code == 3
    assert loaded == []
    outcome = generate(*flags, "--retry-failed")
    assert outcome.code == 0
    assert f"note: {12 - len(failed)} of 12 rows are answered already" in outcome.err
    whole = generate(*flags[:2], "-o", "whole.jsonl", "--seed", "1")
    assert whole.code == 0
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_failed_rows_of_a_folder_have_a_file(generate: Generate) -> None:
    Path("in.txt").write_text("short\n" + "long " * 200 + "\n")
    outcome = generate("-i", "in.txt", "--output-dir", "answers", "--name", "{i}.txt")
    assert outcome.code == 3
    assert sorted(path.name for path in Path("answers").glob("*.*")) == [".job", "0.txt", "failed.jsonl"]
    (failed,) = _lines(Path("answers/failed.jsonl"))
    assert failed["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give either --input FILE or --count N"),
        (("-i", "in.txt", "--count", "3"), "give either --input FILE or --count N"),
        (("--count", "0", "--prompt", "a"), "count must be in [1, 10000000], got 0"),
        (("--count", "2"), "row 0: no column 'prompt'; there are no columns"),
        (("--count", "2", "--prompt", "{x}"), "row 0: prompt: no column 'x'; there are {i}, {id}"),
        (("--count", "2", "--prompt", "{"), "prompt: a lone '{' at character 1"),
        (("--count", "2", "--prompt", "a", "--format", "csv"), "--count has no columns"),
        (("-i", "in.txt", "--raw", "--system", "s"), "system has no place in a raw prompt"),
        (("-i", "in.txt", "--raw", "--no-think"), "think has no place in a raw prompt"),
        (("-i", "gone.txt", "-o", "m.gguf"), "cannot read 'gone.txt': No such file or directory"),
        (("-i", "in.txt", "-o", "a", "--output-dir", "b", "--name", "c"), "give either --output or --output-dir"),
        (("-i", "in.txt", "--output-dir", "b"), "--output-dir and --name 'seed_{i}.txt' go together"),
        (
            ("-i", "in.txt", "--output-dir", "b", "--name", "x.txt"),
            "in.txt:2: the file name 'x.txt' is taken by in.txt:1",
        ),
        (
            ("-i", "in.txt", "--output-dir", "b", "--name", "../{i}"),
            "in.txt:1: name gives '../0', which is not allowed",
        ),
        (
            ("-i", "in.txt", "--output-dir", "b", "--name", "{num}"),
            "in.txt:1: name: no column 'num'; there are {n}, {i}",
        ),
        (("-i", "in.txt", "--output-dir", "b", "--name", "{i}" + "x" * 240), "bytes; at most 240 are allowed"),
        (("-i", "in.txt", "--restart"), "--restart and --retry-failed need --output"),
        (("-i", "in.txt", "-o", "m.gguf"), "'m.gguf' is there already, and no job of ours wrote it"),
        (("-i", "in.txt", "-o", "in.txt", "--restart"), "output must not be the input"),
        (("-i", ".", "-o", "o"), "the ending of '.' is not known: formats are txt"),
        (("-i", "gone.txt", "-o", "o"), "cannot read 'gone.txt': No such file or directory"),
        (("-i", "in.txt", "-o", "."), "output must be a file, and '.' is none"),
        (("-i", "in.txt", "-o", "/dev/null"), "output must be a file, and '/dev/null' is none"),
        (("-i", "in.txt", "--output-dir", ".", "--name", "in.txt"), "in.txt:2: the file name"),
        (("-i", "one.txt", "--output-dir", ".", "--name", "in.txt"), "the file 'in.txt' is there already"),
        (("-i", "in.txt", "--temperature", "9"), "temperature must be in [0, 2], got 9"),
        (("-i", "empty.txt", "-o", "o"), "empty.txt holds no rows"),
        (("-i", "twice.jsonl", "-o", "o"), "twice.jsonl:3: id 'a' is taken by twice.jsonl:1"),
        (("-i", "bad.jsonl", "-o", "o"), "bad.jsonl:2: prompt must be text, got 3"),
    ],
)
def test_what_is_wrong_is_refused_before_a_model_is_loaded(
    generate: Generate, loaded: list[Pipeline], flags: tuple[str, ...], message: str
) -> None:
    _write_rows(2)
    _write_rows(1, "one.txt")
    Path("empty.txt").write_text("\n \n")
    Path("twice.jsonl").write_text("".join(f'{{"id": "{i}", "prompt": "x"}}\n' for i in "aba"))
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    outcome = generate(*flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert message in outcome.err
    assert loaded == []
    assert not Path("o").exists()


def test_a_job_somebody_works_on_is_refused(generate: Generate, loaded: list[Pipeline]) -> None:
    _write_rows(2)
    with locked(Path("out.jsonl.job")):
        outcome = generate("-i", "in.txt", "-o", "out.jsonl")
    assert (outcome.code, outcome.err) == (1, "error: another process is working on the job in 'out.jsonl.job'\n")
    assert loaded == []


def test_ctrl_c_keeps_what_is_answered_and_says_how_to_go_on(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_rows(30)
    flags = ("-i", "in.txt", "-o", "out.jsonl", "--seed", "1")
    num_steps, get = 0, Inbox.get

    def interrupted(inbox: Inbox) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 15:
            raise KeyboardInterrupt
        return get(inbox)

    with monkeypatch.context() as patched:
        patched.setattr(Inbox, "get", interrupted)
        outcome = generate(*flags)
    assert outcome.code == 130
    told = re.search(r"note: stopped: (\d+) of 30 rows are kept; the same command goes on from there\n$", outcome.err)
    assert told is not None
    assert not Path("out.jsonl").exists()
    resumed = generate(*flags)
    assert resumed.code == 0
    assert f"note: {told[1]} of 30 rows are answered already" in resumed.err
    generate(*flags[:2], "-o", "whole.jsonl", "--seed", "1")
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_an_input_that_changes_meanwhile_stops_the_job(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_rows(3)
    open_model = __import__("tuili.runtime.loading.loading").runtime.loading.loading.open_model

    def edited(*arguments: Any) -> Pipeline:
        Path("in.txt").write_text("thing 0\nthing 1\nthing x\n")
        pipeline: Pipeline = open_model(*arguments)
        return pipeline

    monkeypatch.setattr("tuili.runtime.loading.loading.open_model", edited)
    outcome = generate("-i", "in.txt", "-o", "out.jsonl")
    assert outcome.code == 2
    assert outcome.err.endswith("error: in.txt has changed while the job ran: bring back what it was to go on\n")
    assert not Path("out.jsonl").exists()


def _help(command: Callable[..., None], name: str) -> str:
    parameter = inspect.signature(command, eval_str=True).parameters[name]
    return str(parameter.annotation.__metadata__[0].help)


def test_it_has_the_sampling_and_loading_options_of_run() -> None:
    ours, theirs = (inspect.signature(module.command).parameters for module in (generate_command, run_command))
    assert set(SAMPLING_NAMES) <= ours.keys()
    for name in ours.keys() & theirs.keys() - {"model", "system", "raw", "verbose", "format"}:
        assert ours[name].default == theirs[name].default
        assert _help(generate_command.command, name) == _help(run_command.command, name)


def test_progress_is_a_line_a_second_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(generate_display.time, "monotonic", lambda: now)
    progress = JobProgress(10, num_kept=1, started_s=90.0)
    with showing(progress, is_quiet=False) as show:
        for i in range(9):
            now += 0.4
            progress.num_done += 1
            progress.num_output_tokens += 10
            progress.num_finished_tokens += 10
            show(progress, FinishedRow(f"r{i}", 10, 0.25))
        show(progress, FinishedRow("bad\x1b[2J", 0, 0.0, "too long"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2/10  r0: 10 tokens in 0.25 s; 1.0 tokens/s, 1 min 23 s left"
    assert [line.split()[0] for line in lines[:-1]] == ["2/10", "5/10", "8/10", "10/10"]
    assert lines[-1] == "note: row 'bad\\x1b[2J' failed: too long"


def test_verbose_is_a_line_for_every_answer(generate: Generate) -> None:
    _write_rows(5)
    outcome = generate("-i", "in.txt", "-o", "out.jsonl", "--verbose")
    lines = [line for line in outcome.err.splitlines() if not line.startswith("note: ")]
    assert [line.split()[0] for line in lines] == [f"{i}/5" for i in range(1, 6)]


def test_verbose_tells_the_sampling_in_effect(generate: Generate) -> None:
    """With a bias, which the journal knows again when the job goes on."""
    _write_rows(3)
    command = ("-i", "in.txt", "-o", "out.jsonl", "--verbose", "--logit-bias", "5+1", "--top-k", "7")
    outcome = generate(*command)
    assert outcome.code == 0
    assert "top_k 7 (request)" in outcome.err
    assert "logit_bias {5: 1.0} (request)" in outcome.err
    assert generate(*command).code == 0


def test_progress_is_a_bar_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_display, "is_plain", lambda _: False)
    monkeypatch.setenv("COLUMNS", "200")
    progress = JobProgress(2)
    with showing(progress, is_quiet=False) as show:
        progress.num_done, progress.num_output_tokens, progress.num_finished_tokens = 1, 30, 30
        show(progress, FinishedRow("a", 30, 1.5))
    shown = capsys.readouterr().err
    assert "1/2" in shown
    assert "tokens/s" in shown
    assert "last 1.50 s" in shown


def test_durations_in_words() -> None:
    assert [format_seconds(s) for s in (0.25, 59.94, 75.3, 3600 * 5 + 61)] == [
        *("0.2 s", "59.9 s", "1 min 15 s", "5 h 1 min")
    ]


def test_a_real_job_killed_and_gone_on_with_equals_one_left_alone(smollm2_gguf: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "in.txt"
    prompts.write_text("".join(f"Count to {i}.\n" for i in range(20)))  # half a second of work, in which it is killed
    flags = ("-i", str(prompts), "--max-tokens", "4", "--seed", "1", "--max-num-seqs", "1")
    command = [sys.executable, "-m", "tuili.cli.main", "generate", str(smollm2_gguf), *flags, "-o"]
    with subprocess.Popen([*command, str(tmp_path / "a.jsonl")], stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        assert job.stderr.readline().startswith("1/20 ")
        job.kill()
    assert not (tmp_path / "a.jsonl").exists()
    for name in ("a.jsonl", "b.jsonl"):
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, check=True)
        assert ("rows are answered already" in done.stderr) == (name == "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_reader_that_leaves_is_no_crash(smollm2_gguf: Path) -> None:
    flags = ("--count", "1000", "--prompt", "Say {i}", "--max-tokens", "4", "--max-num-seqs", "2")
    command = [sys.executable, "-m", "tuili.cli.main", "generate", str(smollm2_gguf), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        assert json.loads(job.stdout.readline())["id"] == "0"
        job.stdout.close()
        errors = job.stderr.read()
    assert job.returncode == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
