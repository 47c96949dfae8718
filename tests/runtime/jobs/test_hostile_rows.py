"""Mutated input files: read, or refused in one line that names a place; never anything else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tuili.errors import InvalidRequestError
from tuili.runtime.jobs.job import JobSettings, open_job
from tuili.runtime.jobs.rows import FileRows

NUM_MUTANTS = 500
EDGES = [
    *("null", "true", "-1", "0", "1e400", "-0.0", "9" * 400, '""', '"\\u0000"', '"\\ud83d"', "[]", "{}", "[[]]"),
    *("NaN", '"x"', '[{"role": "user"}]', '{"content": 1}', "1.5", "18446744073709551616", '["a", 3]'),
]


def _batch_line(i: int) -> str:
    chat = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "temperature": 0.5,
        "stop": ["a"],
        "logit_bias": {"5": 1.0},
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 3,
        "n": 2,
    }
    body = chat if i % 2 else {"prompt": "Once", "logprobs": 1, "top_k": 5}
    url = "/v1/chat/completions" if i % 2 else "/v1/completions"
    return json.dumps({"custom_id": f"r{i}", "method": "POST", "url": url, "body": body})


SEEDS = {
    "jsonl": ["\n".join(map(_batch_line, range(4))), '{"prompt": "a", "id": 1}\n{"messages": []}\n{"prompt": ["x"]}'],
    "csv": ['prompt,id\n"a, ""b""",1\nc,2\n', "prompt\n\n\nx\n"],
    "tsv": ["prompt\tid\na\t1\n"],
    "txt": ["one\ntwo\n"],
}


def _mutated(data: bytes, generator: random.Random) -> bytes:
    for _ in range(generator.randint(1, 3)):
        at, kind = generator.randrange(len(data) + 1), generator.randrange(5)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + bytes([generator.randrange(256)]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + data[at + generator.randint(1, 20) :]
        elif kind == 3:
            data = data[:at] + data[generator.randrange(len(data) + 1) :] + data[at:]
        else:
            colon = data.find(b": ", at)
            end = min((i for i in (data.find(b",", colon), data.find(b"}", colon)) if i > 0), default=len(data))
            data = data[: colon + 2] + generator.choice(EDGES).encode() + data[end:] if colon >= 0 else data
    return data


@pytest.mark.parametrize("file_format", SEEDS)
def test_mutants_are_read_or_refused(file_format: str, tmp_path: Path) -> None:
    generator = random.Random(15)
    path = tmp_path / f"rows.{file_format}"
    refusals: list[str] = []
    for _ in range(NUM_MUTANTS):
        path.write_bytes(_mutated(generator.choice(SEEDS[file_format]).encode(), generator))
        try:
            open_job(FileRows(path, name="rows"), JobSettings(model="m", model_bytes=1, model_digest="d"))
        except InvalidRequestError as error:
            refusals.append(str(error))
    assert len(refusals) > NUM_MUTANTS // 20
    for refusal in refusals:
        assert refusal.startswith(("rows:", "rows holds no rows"))
        assert len(refusal) < 2000
