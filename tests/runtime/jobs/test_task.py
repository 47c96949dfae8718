"""Rows as requests, answers as lines: prompts of our own."""

from __future__ import annotations

from typing import Any

import pytest

from tuili.errors import ContextLengthError, InvalidRequestError
from tuili.runtime.api.outputs import CompletionOutput, RequestOutput
from tuili.runtime.jobs.rows import Row
from tuili.runtime.jobs.task import PromptTask, Served
from tuili.runtime.jobs.template import Template, drawn, row_seed
from tuili.types import SamplingParams

MODEL = Served(default_sampling={"temperature": 0.5, "top_k": 7})


def _row(index: int = 0, **values: Any) -> Row:
    return Row(index, f"a.jsonl:{index + 1}", values)


def _task(prompt: str | None = None, system: str | None = None, **changes: Any) -> PromptTask:
    return PromptTask(
        prompt=None if prompt is None else Template.parse(prompt, "prompt"),
        system=None if system is None else Template.parse(system, "system"),
        **changes,
    )


def test_a_row_fills_in_prompt_and_system_with_the_same_numbers() -> None:
    task = _task("Write {num:5-40} lines on {topic} ({i}, {id})", "At most {num} lines, {num:5-40} exactly.")
    request = task.request(_row(3, topic="rain"), 9, MODEL)
    number = drawn(9, 3, "num", (5, 40))
    assert request.messages == (
        {"role": "system", "content": f"At most {number} lines, {number} exactly."},
        {"role": "user", "content": f"Write {number} lines on rain (3, 3)"},
    )
    assert request.sampling == SamplingParams(temperature=0.5, top_k=7, max_tokens=None, seed=row_seed(9, 3))


def test_flags_go_over_the_models_defaults_and_a_fixed_seed_is_possible() -> None:
    request = _task(sampling={"temperature": 0.0, "seed": 4}).request(_row(prompt="hi"), 9, MODEL)
    assert request.sampling == SamplingParams(temperature=0.0, top_k=7, max_tokens=None, seed=4)


def test_without_a_template_the_column_prompt_is_asked_or_messages_continued() -> None:
    assert _task().request(_row(prompt="{as it is}"), 0, MODEL).messages == ({"role": "user", "content": "{as it is}"},)
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = _row(messages=conversation)
    assert _task().request(row, 0, MODEL).messages == tuple(conversation)
    assert _task(system="s").request(row, 0, MODEL).messages == ({"role": "system", "content": "s"}, *conversation)
    assert _task("{prompt}").request(_row(prompt="x", messages=1), 0, MODEL).messages is not None


def test_raw_prompts_and_models_without_a_template_complete() -> None:
    without = Served(has_chat_template=False)
    assert _task(raw=True).request(_row(prompt="a"), 0, MODEL).prompt == "a"
    assert _task().request(_row(prompt="a"), 0, without).prompt == "a"
    with pytest.raises(InvalidRequestError, match="needs a chat template, and this model has none"):
        _task(system="s").request(_row(prompt="a"), 0, without)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (_task(), {"text": "a"}, r"no column 'prompt'; there are 'text': say with --prompt what to ask"),
        (_task(), {}, r"no column 'prompt'; there are no columns: say with --prompt"),
        (_task(), {"prompt": 3}, "prompt must be text, got 3"),
        (_task("{a}"), {"a": " "}, "prompt is empty"),
        (_task("{b}"), {"a": 1}, r"prompt: no column 'b'; there are \{a\}, \{i\}, \{id\}"),
        (_task("{a:1-2}"), {"a": 1}, "'a' is a column, so it cannot be a random number too"),
        (_task(id_column="k"), {"prompt": "a"}, "no column 'k'; there are 'prompt'"),
        (_task(), {"prompt": "a", "id": 1.5}, "id must be text or a whole number, got 1.5"),
        (_task(), {"messages": "a"}, "messages must be a list, got 'a'"),
        (_task(), {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "must be a part of type 'text'"),
        (_task(raw=True), {"messages": [{"role": "user", "content": "a"}]}, "messages cannot be completed raw"),
        (_task(system="s"), {"messages": [{"role": "system", "content": "a"}]}, "begin with a system message"),
    ],
)
def test_rows_that_cannot_be_asked_are_refused(task: PromptTask, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        task.request(_row(**values), 0, MODEL)


def test_lines_hold_id_prompt_and_answer() -> None:
    task, row = _task("Say {word}"), _row(2, word="yes", id=17)
    request = task.request(row, 1, MODEL)
    output = RequestOutput("17", None, [1, 2, 3], [CompletionOutput(0, "yes!", [4, 5], finish_reason="stop")])
    result = task.result(row, request, output)
    assert task.line(row, 1, result) == {
        "id": "17",
        "prompt": "Say yes",
        "text": "yes!",
        "finish_reason": "stop",
        "num_prompt_tokens": 3,
        "num_output_tokens": 2,
        "seed": row_seed(1, 2),
    }
    output.outputs.append(CompletionOutput(1, "no", [6], finish_reason="length"))
    assert task.result(row, request, output)["answers"] == [
        {"text": "yes!", "finish_reason": "stop"},
        {"text": "no", "finish_reason": "length"},
    ]
    failure = task.failure(ContextLengthError("too long", param="prompt"))
    told = {"code": "context_length_exceeded", "message": "too long", "param": "prompt"}
    assert task.line(row, 1, failure) == {"id": "17", "prompt": "Say yes", "error": told}
    conversation = _row(messages=[{"role": "user", "content": "a"}])
    assert _task().line(conversation, 1, failure)["messages"] == ({"role": "user", "content": "a"},)
