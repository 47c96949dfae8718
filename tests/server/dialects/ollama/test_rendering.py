"""Events as lines of JSON and as one object."""

from __future__ import annotations

import json
from typing import Any

from tuili.errors import EngineUnavailableError
from tuili.server.dialect import Progress
from tuili.server.dialects.ollama.rendering import AnswerRenderer, timestamp
from tuili.types import Done, Event, Finished, Logprob, TextDelta, Timings, Usage

USAGE = Usage(num_prompt_tokens=9, num_cached_tokens=4, num_output_tokens=3)
TIMINGS = Timings(time_to_first_token_s=0.5, decode_s=0.25, arrival_s=101.0, queue_s=0.125)
ENDING = {
    "done": True,
    "done_reason": "length",
    "total_duration": 3_000_000_000,
    "load_duration": 1_125_000_000,
    "prompt_eval_count": 9,
    "cached_tokens": 4,
    "prompt_eval_duration": 375_000_000,
    "eval_count": 3,
    "eval_duration": 250_000_000,
}


def renderer(shape: Any = "chat", **fields: Any) -> AnswerRenderer:
    return AnswerRenderer(model="m", shape=shape, arrival_s=100.0, clock=lambda: 103.0, **fields)


def delta(text: str = "", *ids: int, reasoning: str = "", **fields: Any) -> Event:
    return TextDelta(index=0, text=text, token_ids=ids, reasoning=reasoning, **fields)


def events(*of_one: Event) -> list[tuple[int, Event]]:
    return [(0, event) for event in of_one]


END = (Finished(index=0, finish_reason="length"), Done(usage=USAGE, timings=TIMINGS))


def lines(content: bytes) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in content.splitlines()]
    for line in found:
        assert line.pop("model", "m") == "m"
        line.pop("created_at", None)
    return found


def test_a_chat_streams_thinking_then_text_then_counts() -> None:
    answer = renderer()
    assert answer.start() == b""
    assert lines(answer.push(events(delta("", 1, reasoning="hm"), delta("", 2)))) == [
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False}
    ]
    assert lines(answer.push(events(delta("", 3, reasoning="."), delta("Hi", 4), delta(" you", 5), *END))) == [
        {"message": {"role": "assistant", "content": "", "thinking": "."}, "done": False},
        {"message": {"role": "assistant", "content": "Hi you"}, "done": False},
        {"message": {"role": "assistant", "content": ""}, **ENDING},
    ]


def test_a_completion_brings_its_context() -> None:
    answer = renderer("generate", context=[7, 8], num_truncated=5)
    assert lines(answer.push(events(delta("a", 1)))) == [{"response": "a", "done": False}]
    (last,) = lines(answer.push(events(delta("", 2), *END)))
    assert last == {"response": "", **ENDING, "context": [7, 8, 1, 2], "truncated_tokens": 5}


def test_whole_and_streamed_say_the_same() -> None:
    told = events(delta("", 1, reasoning="h"), delta("a", 2), delta("b", 3), *END)
    whole = renderer("generate").whole(told)
    streamed = lines(renderer("generate").push(told))
    assert whole["response"] == "".join(line["response"] for line in streamed)
    assert whole["thinking"] == "".join(line.get("thinking", "") for line in streamed)
    assert ENDING.items() <= whole.items()
    assert ENDING.items() <= streamed[-1].items()


def test_logprobs_go_with_their_tokens() -> None:
    best = {1: Logprob(-0.5, 2, "a"), 2: Logprob(-0.25, 1, "é")}
    answer = renderer(num_top_logprobs=1)
    (line,) = lines(answer.push(events(delta("", 1, logprobs=(best,)))))  # text may lag behind
    assert line["logprobs"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "é", "logprob": -0.25, "bytes": [195, 169]}],
        }
    ]
    (line,) = lines(renderer(num_top_logprobs=0).push(events(delta("a", 1, logprobs=(best,)))))
    assert "top_logprobs" not in line["logprobs"][0]


def test_a_stream_breaks_with_one_error_and_is_kept_alive_by_empty_lines() -> None:
    answer = renderer("generate")
    (line,) = lines(answer.keep_alive(Progress(10, 20)))
    assert line == {"response": "", "done": False, "prompt_tokens_computed": 10, "prompt_tokens": 20}
    assert lines(answer.fail(EngineUnavailableError("gone"))) == [{"error": "gone"}]


def test_times_are_written_as_go_does() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000000Z"
