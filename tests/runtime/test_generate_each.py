"""More prompts than fit in memory: answered one by one, and nothing of a finished one is kept."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import huggingface_folder
from tuili import LLM, SamplingParams
from tuili.errors import InvalidRequestError

TESTS = str(Path(__file__).parent.parent)
NUM_PROMPTS = int(os.environ.get("TUILI_FLAT_PROMPTS", "2500"))
SLACK_BYTES = 1 << 20  # of allocators; what the prompts and answers take is several times that

ANSWER = """
import json, sys
from support.sizes import deep_size
from tuili import LLM, SamplingParams
from tuili.machine import process_memory
count, way = int(sys.argv[2]), sys.argv[3]
params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
prompts = ([1 + (i * j) % 300 for j in range(1, 49)] for i in range(count))
memory, num_done = [], 0
def look():
    global num_done
    num_done += 1
    if num_done % (count // 20) == 0:
        memory.append(process_memory()[0])
class Bar:
    format_dict = {"elapsed": 1.0}
    def __init__(self, **_): pass
    def set_postfix_str(self, *_, **__): pass
    def update(self): look()
    def close(self): pass
with LLM(sys.argv[1], num_threads=1, max_num_seqs=32, max_model_len=64, kv_cache_memory_bytes=4 << 20) as llm:
    if way == "generate":
        kept = llm.generate(list(prompts), params, use_tqdm=Bar)
    else:
        kept = []
        for _, output in llm.generate_each(prompts, params):
            if way == "kept":
                kept.append(output)
            look()
print(json.dumps([memory, deep_size(kept[count // 5:])]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("each")
    huggingface_folder.save(path, "llama", num_hidden_layers=1)
    return path


def grown(folder: Path, way: str) -> tuple[int, int]:
    """Bytes of its own that a process came to have more between a fifth of the answers and the end, at most.

    And the size of the outputs that it kept of these.
    """
    command = [sys.executable, "-c", ANSWER, str(folder), str(NUM_PROMPTS), way]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    memory, num_bytes = json.loads(done.stdout)
    assert len(memory) == 20
    return int(max(memory[4:]) - memory[3]), num_bytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_flat_beside_the_outputs(folder: Path) -> None:
    each, kept, listed = (grown(folder, way) for way in ("each", "kept", "generate"))
    assert each[0] < SLACK_BYTES + kept[0] // 50
    assert kept[1] > 1.5 * SLACK_BYTES
    for growth, num_bytes in (kept, listed):  # nothing but what is returned stays, and that measurement sees it
        assert num_bytes * 0.8 - SLACK_BYTES < growth < num_bytes * 1.15 + SLACK_BYTES
    assert listed[1] < NUM_PROMPTS * 0.8 * 1000


def test_outputs_come_as_they_finish_with_the_number_of_their_prompt(llm: LLM) -> None:
    prompts = ["Once upon a time", {"prompt": "The sun"}, [504, 905, 282]]
    lengths = (12, 2, 7)
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    found = list(llm.generate_each(iter(prompts), iter(params)))
    assert [index for index, _ in found] == [1, 2, 0]
    expected = llm.generate(prompts, params, use_tqdm=False)
    for index, output in found:
        assert output.finished
        assert output.outputs[0].text == expected[index].outputs[0].text
        assert len(output.outputs[0].token_ids) == lengths[index]


def test_prompts_are_taken_as_there_is_room_and_closing_ends_it(llm: LLM) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield f"{taken} and"

    answers = llm.generate_each(endless(), SamplingParams(temperature=0, max_tokens=1))
    assert taken == 0
    assert len([next(answers) for _ in range(3)]) == 3
    assert taken < 1000
    answers.close()  # type: ignore[attr-defined]
    assert len(llm.generate(["The end"], SamplingParams(max_tokens=1), use_tqdm=False)) == 1
    stats = llm._pipeline.loop.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def test_what_is_wrong_is_said(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="prompts must be an iterable of prompts, got str"):
        llm.generate_each("one prompt")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="got 1 and more prompts"):
        list(llm.generate_each(["a", "b"], [SamplingParams(max_tokens=1)]))
    with pytest.raises(InvalidRequestError, match="a prompt must be a string"):
        list(llm.generate_each([5]))  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="got generator: generate_each takes any iterable"):
        llm.generate(x for x in "ab")  # type: ignore[arg-type]
