"""From token deltas to events: the same text and the same end, however the engine cut its deltas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from tuili.errors import TuiliError
from tuili.runtime.api.outputs import RequestOutput, empty_output
from tuili.runtime.front.answer import Answer
from tuili.runtime.front.text_parts import open_tokenizer
from tuili.text.reasoning import THINK, Marks, Phase
from tuili.text.tokenizer import NamedTokens, Tokenizer
from tuili.types import Done, Event, Failed, Finished, Logprob, SamplingParams, TokenDelta, TokenRequest
from tuili.weights.checkpoint import open_checkpoint

TEXT = "The café costs 20€, says 推理 👩‍👩‍👧. STOP here. The end."


@pytest.fixture(scope="module")
def tokenizer(smollm2_gguf: Path) -> Tokenizer:
    return open_tokenizer(open_checkpoint(smollm2_gguf))


def _request(params: SamplingParams) -> TokenRequest:
    return TokenRequest(request_id="r", prompt_token_ids=(1, 2, 3), sampling=params, seed=0)


def _deltas(ids: Sequence[int], cuts: Sequence[int], with_logprobs: bool = False) -> Iterator[TokenDelta]:
    edges = [0, *sorted({c for c in cuts if 0 < c < len(ids)}), len(ids)]
    for start, stop in itertools.pairwise(edges):
        part = tuple(ids[start:stop])
        yield TokenDelta(
            request_id="r",
            index=0,
            token_ids=part,
            finish_reason="length" if stop == len(ids) else None,
            logprobs=tuple({i: Logprob(-1.0, 1)} for i in part) if with_logprobs else None,
        )


def _events(tokenizer: Tokenizer, params: SamplingParams, deltas: Iterator[TokenDelta]) -> list[Event]:
    answer = Answer(tokenizer, _request(params))
    return [event for delta in deltas for event in answer.push(delta)]


def _fold(events: list[Event]) -> RequestOutput:
    output = empty_output("r", 1)
    for event in events:
        output.fold(event)
    return output


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), max_size=12), stop=st.sampled_from([None, "STOP", "€, says", "end.", "👧"]))
def test_cutting_the_deltas_changes_nothing(tokenizer: Tokenizer, cuts: list[int], stop: str | None) -> None:
    ids = tokenizer.encode(TEXT)
    params = SamplingParams(stop=stop, max_tokens=100)
    output = _fold(_events(tokenizer, params, _deltas(ids, cuts)))
    one_by_one = _fold(_events(tokenizer, params, _deltas(ids, range(1, len(ids)))))
    completion = output.outputs[0]
    assert completion == one_by_one.outputs[0]
    assert completion.text == (TEXT if stop is None else TEXT[: TEXT.index(stop)])
    assert (completion.finish_reason, completion.stop_reason) == (("length", None) if stop is None else ("stop", stop))
    assert output.finished


def test_a_stop_string_asks_for_the_engine_to_be_told_and_later_deltas_are_dropped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    answer = Answer(tokenizer, _request(SamplingParams(stop="STOP", include_stop_str_in_output=True)))
    events = [event for delta in _deltas(ids, range(1, len(ids))) for event in answer.push(delta)]
    assert answer.stopped == [0]
    assert answer.is_done
    assert sum(isinstance(e, Finished) for e in events) == sum(isinstance(e, Done) for e in events) == 1
    assert _fold(events).outputs[0].text.endswith("STOP")
    assert list(answer.push(TokenDelta(request_id="r", index=0, token_ids=(), finish_reason="abort"))) == []


def test_the_stop_token_is_counted_but_not_shown(tokenizer: Tokenizer) -> None:
    ids = (*tokenizer.encode("Fine"), tokenizer.eos_token_ids[0])
    deltas = [
        TokenDelta(
            request_id="r",
            index=0,
            token_ids=ids,
            finish_reason="stop",
            stop_token_id=ids[-1],
            num_cached_tokens=2,
        )
    ]
    params = SamplingParams(skip_special_tokens=False)
    output = _fold(_events(tokenizer, params, iter(deltas)))
    assert output.outputs[0].text == "Fine"
    assert output.outputs[0].token_ids == list(ids)
    assert output.outputs[0].stop_reason == ids[-1]
    assert output.num_cached_tokens == 2


def test_logprobs_come_with_their_text_and_are_summed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    params = SamplingParams(logprobs=0)
    output = _fold(_events(tokenizer, params, _deltas(ids, [2], with_logprobs=True))).outputs[0]
    assert output.logprobs is not None
    assert [entry[i].decoded_token for entry, i in zip(output.logprobs, ids, strict=True)] == ["one", " two", " three"]
    assert output.cumulative_logprob == -3.0


def test_a_failure_is_the_last_event(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer, _request(SamplingParams(n=2, temperature=1.0)))
    error = TuiliError("the backend failed")
    failed = TokenDelta(request_id="r", index=1, token_ids=(), finish_reason="error", error=error)
    assert list(answer.push(failed)) == [Failed(error)]
    assert answer.is_done
    assert list(answer.push(failed)) == []
    with pytest.raises(TuiliError, match="the backend failed"):
        empty_output("r", 2).fold(Failed(error))


def test_without_detokenizing_only_ids_come(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    output = _fold(_events(tokenizer, SamplingParams(detokenize=False), _deltas(ids, [3])))
    assert output.outputs[0].text == ""
    assert output.outputs[0].token_ids == ids


THOUGHT = "<think>\nWhat costs 20€?\n</think>\n\nThe café does."


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), max_size=12), stop=st.sampled_from([None, "€", "café", "</think>"]))
def test_thinking_is_told_apart_the_same_however_deltas_are_cut(
    tokenizer: Tokenizer, cuts: list[int], stop: str | None
) -> None:
    ids = tokenizer.encode(THOUGHT)

    def completion(edges: Sequence[int]) -> tuple[str, str, int]:
        params = SamplingParams(stop=stop, max_tokens=100)
        answer = Answer(tokenizer, _request(params), thinking=(THINK, Phase.START))
        events = [event for delta in _deltas(ids, edges) for event in answer.push(delta)]
        done = events[-1]
        assert isinstance(done, Done)
        output = _fold(events).outputs[0]
        return output.reasoning, output.text, done.usage.num_reasoning_tokens

    reasoning, text, num_reasoning = completion(cuts)
    assert (reasoning, text, num_reasoning) == completion(range(1, len(ids)))
    kept = THOUGHT if stop is None else THOUGHT[: THOUGHT.index(stop)]
    assert [reasoning, text] == (kept.removeprefix("<think>") + "</think>").split("</think>")[:2]
    assert len(tokenizer.encode(reasoning)) - 3 <= num_reasoning <= len(ids)


def test_marks_that_are_control_tokens_are_seen_and_not_told() -> None:
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcĠ")}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["[THINK]", "[/THINK]", "<end>"])
    tokenizer = Tokenizer(backend, NamedTokens())
    a, opening, closing, end = 0, 4, 5, 6
    answer = Answer(tokenizer, _request(SamplingParams()), thinking=(Marks("[THINK]", "[/THINK]"), Phase.START))
    output = _fold([e for d in _deltas([opening, a, a, closing, 1, end], [1, 2, 3, 4, 5]) for e in answer.push(d)])
    assert (output.outputs[0].reasoning, output.outputs[0].text) == ("aa", "b")


def test_each_of_several_answers_thinks_by_itself(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer, _request(SamplingParams(n=2, temperature=1.0)), thinking=(THINK, Phase.THINKING))
    output = empty_output("r", 2)
    for index, text in ((0, "Hm</think>Yes"), (1, "No end")):
        ids = tuple(tokenizer.encode(text))
        for event in answer.push(TokenDelta(request_id="r", index=index, token_ids=ids, finish_reason="length")):
            output.fold(event)
    assert [(o.reasoning, o.text) for o in output.outputs] == [("Hm", "Yes"), ("No end", "")]
