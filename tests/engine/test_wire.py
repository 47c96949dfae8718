"""Messages between the processes: they come out as they went in, and nothing else gets through."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.answers import ask
from tuili.beam_search_params import BeamSearchParams
from tuili.engine.stats import EngineStats, Prefill
from tuili.engine.wire import (
    MAX_FRAME_BYTES,
    Abort,
    Close,
    Deltas,
    EngineFacts,
    FrameReader,
    FromEngine,
    Generate,
    Heartbeat,
    Load,
    LoadFailed,
    ToEngine,
    WireError,
    asked_indexes,
    error_of,
    frame,
    generate_message,
    note_of,
    token_delta,
    token_request,
    wire_delta,
)
from tuili.errors import ContextLengthError, InvalidRequestError, TuiliError
from tuili.types import BeamScore, CacheMiss, Logprob, Resume, TokenDelta, TokenRequest

STATS = EngineStats(
    num_running=1,
    num_waiting=2,
    num_blocks=(3, 4),
    num_free_blocks=(5, 6),
    num_steps=7,
    num_preemptions=8,
    num_prefix_queries=9,
    num_prefix_hits=10,
    num_computed_tokens=11,
    num_output_tokens=12,
    num_draft_tokens=13,
    num_accepted_tokens=14,
    prefill={"r": Prefill(15, 3, 1.5)},
)
FACTS = EngineFacts(
    process_id=1,
    vocab_size=61,
    max_model_len=128,
    max_num_seqs=4,
    capacity=None,
    block_size=16,
    num_blocks=(8,),
    cache_bytes=2**40,
    weight_bytes=0,
    kv_cache_dtype="int8",
    num_threads=2,
    isa=None,
    load_s=0.5,
    stamps=(("model.gguf", 2**40, 2**60, 7),),
)
TO_ENGINE = [
    Load("model.gguf", msgspec.Raw(b"\x80"), FACTS.stamps),
    generate_message(3, ask("r", range(5))),
    Abort(3),
    Abort(3, 1),
    Close(),
]
FROM_ENGINE = [
    FACTS,
    LoadFailed(note_of(TuiliError("no"))),
    Heartbeat(None, 1, 2),
    Heartbeat(STATS, 2**40, 0),
    Deltas([wire_delta(3, TokenDelta(request_id="r", index=0, token_ids=(1, 2)))]),
]
REQUESTS = [
    ask("plain", range(60)),
    ask("n", [1], temperature=0.7, n=3, seed=2**64 - 1, eos=(1, 2), priority=-3, salt="s", top_k=5, top_p=0.5),
    ask(
        "stops", [1], stop=["a", "b"], min_tokens=3, stop_token_ids=[4], logit_bias={5: -2.5}, allowed_token_ids=[5, 6]
    ),
    ask("words", [1], bad_words=((1,), (2, 3)), dry_breakers={4: ((), (5, 6))}, dry_multiplier=0.5),
    ask("logprobs", [1], logprobs=-1, prompt_logprobs=2, mirostat=2, samplers="kpt", temperature=1.0),
    ask("circles", [1], repetition_detection={"max_pattern_size": 3, "min_count": 4}, output_kind=1),
    replace(ask("beams", [1], n=2, temperature=1.0), beam_search=BeamSearchParams(beam_width=2, max_tokens=9)),
    replace(ask("resumed", [1]), resume={0: Resume((4, 5), 1.25)}),
]
ODD = float.fromhex("0x1.999998p-4")  # a float32 that has no short decimal
ENTRY = {5: Logprob(-ODD, 1), 6: Logprob(-2.5, None)}
DELTAS = [
    TokenDelta(request_id="r", index=0, token_ids=(7,)),
    TokenDelta(request_id="r", index=2, token_ids=(7, 8), finish_reason="stop", stop_token_id=8, sampler_state=ODD),
    TokenDelta(request_id="r", index=0, token_ids=(7,), logprobs=(ENTRY,), prompt_logprobs=(None, ENTRY)),
    TokenDelta(request_id="r", index=0, token_ids=(1,), num_cached_tokens=64, cache_miss=CacheMiss("differs", 70)),
    TokenDelta(request_id="r", index=0, token_ids=(1,), scheduled_s=123.5, finish_reason="stop", stop_reason="circles"),
    TokenDelta(request_id="r", index=1, token_ids=(1, 2), beam=BeamScore(-0.5, -1.0, (-0.25, -0.75))),
]


@pytest.mark.parametrize(("messages", "kind"), [(TO_ENGINE, ToEngine), (FROM_ENGINE, FromEngine)])
@given(cuts=st.lists(st.integers(1, 60), min_size=1, max_size=40))
@settings(deadline=None, max_examples=20)
def test_however_bytes_arrive_messages_come_whole(messages: list, kind: object, cuts: list[int]) -> None:
    data = b"".join(map(frame, messages))
    reader, found, start = FrameReader(kind), [], 0
    for size in [*cuts, len(data)]:
        found += reader.feed(data[start : start + size])
        start += size
    assert [msgspec.msgpack.encode(m) for m in found] == [msgspec.msgpack.encode(m) for m in messages]
    assert list(map(type, found)) == list(map(type, messages))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.request_id)
def test_a_request_comes_out_as_it_went_in(request_: TokenRequest) -> None:
    (message,) = FrameReader(ToEngine).feed(frame(generate_message(0, request_)))
    assert isinstance(message, Generate)
    assert token_request(message) == request_


@pytest.mark.parametrize("delta", DELTAS)
def test_a_delta_comes_out_as_it_went_in(delta: TokenDelta) -> None:
    (message,) = FrameReader(FromEngine).feed(frame(Deltas([wire_delta(9, delta)])))
    assert message.deltas[0].stream == 9
    assert token_delta("r", message.deltas[0]) == delta


def _kinds(root: type[TuiliError]) -> list[type[TuiliError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]


@pytest.mark.parametrize("kind", [kind for kind in _kinds(TuiliError) if kind.__module__ == "tuili.errors"])
def test_an_error_stays_of_its_class(kind: type[TuiliError]) -> None:
    delta = TokenDelta(request_id="r", index=0, token_ids=(), finish_reason="error", error=kind("what was found"))
    (message,) = FrameReader(FromEngine).feed(frame(Deltas([wire_delta(0, delta)])))
    error = token_delta("r", message.deltas[0]).error
    assert type(error) is kind
    assert str(error) == "what was found"


def test_an_error_keeps_the_field_it_names() -> None:
    error = error_of(note_of(ContextLengthError("too long", param="prompt")))
    assert isinstance(error, ContextLengthError)
    assert error.param == "prompt"


def test_logits_processors_do_not_leave_the_process() -> None:
    request = ask("r", [1], logits_processors=[lambda ids, logits: logits])
    with pytest.raises(InvalidRequestError, match="load the model in this process") as error:
        generate_message(0, request)
    assert error.value.param == "logits_processors"


def test_sampling_that_is_none_is_refused() -> None:
    message = generate_message(0, ask("r", [1]))
    for sampling in ({"temperature": "hot"}, {"unheard_of": 1}, {"n": 2, "temperature": 0}):
        with pytest.raises(InvalidRequestError):
            token_request(replaced(message, sampling))


def replaced(message: Generate, sampling: object) -> Generate:
    return msgspec.structs.replace(message, sampling=msgspec.Raw(msgspec.msgpack.encode(sampling)))


def test_sampling_of_no_such_kind_is_no_message() -> None:
    message = generate_message(0, ask("r", [1]))
    for sampling in (5, ["temperature"], {1: 2}, None):
        with pytest.raises(WireError):
            token_request(replaced(message, sampling))
        with pytest.raises(WireError):
            asked_indexes(replaced(message, sampling))


def test_the_answers_asked_for_are_known_of_a_request_that_is_refused() -> None:
    message = generate_message(0, ask("r", [1], n=2, temperature=1.0))
    assert list(asked_indexes(replaced(message, {"n": 3, "temperature": 0}))) == [0, 1, 2]
    resumed = msgspec.structs.replace(message, resume={2: Resume((), None), 1: Resume((), None)})
    assert list(asked_indexes(resumed)) == [1, 2]


def test_the_same_sampling_is_checked_once() -> None:
    one, other = (token_request(generate_message(i, ask(str(i), [1], seed=i, top_p=0.25))) for i in range(2))
    assert one.sampling is other.sampling
    assert (one.seed, other.seed) == (0, 1)


def test_large_sampling_is_not_kept() -> None:
    message = generate_message(0, ask("r", [1], logit_bias=dict.fromkeys(range(5000), 1.0)))
    one, other = token_request(message), token_request(message)
    assert one.sampling == other.sampling
    assert one.sampling is not other.sampling


def test_a_length_beyond_the_cap_is_refused_before_anything_is_kept() -> None:
    for size in (2**32 - 1, MAX_FRAME_BYTES + 1):
        with pytest.raises(WireError, match=f"{size} bytes"):
            list(FrameReader(ToEngine).feed(struct.pack(">I", size)))


def _hostile(random_: random.Random) -> bytes:
    """A frame that was damaged, cut short, made up, or wraps what no decoder should follow."""
    whole = bytearray(frame(random_.choice(TO_ENGINE + FROM_ENGINE)))  # type: ignore[arg-type]
    match random_.randrange(5):
        case 0:
            for _ in range(random_.randint(1, 8)):
                whole[random_.randrange(4, len(whole))] = random_.randrange(256)
            return bytes(whole)
        case 1:
            body = random_.randbytes(random_.randint(0, 64))
        case 2:
            body = bytes([random_.choice((0x91, 0x81, 0xDC, 0xDD, 0xC9))]) * random_.randint(1, 20_000)
        case 3:
            body = b"\x80\x04\x95" + random_.randbytes(40)  # as pickles begin
        case _:
            body = bytes(whole[4 : random_.randint(4, len(whole))])
    return len(body).to_bytes(4, "big") + body


def test_two_thousand_hostile_frames_end_in_nothing_but_a_wire_error() -> None:
    random_, refused = random.Random(15), 0
    for _ in range(2000):
        data = _hostile(random_)
        for kind in (ToEngine, FromEngine):
            try:
                for message in FrameReader(kind).feed(data):
                    assert isinstance(message, kind)  # type: ignore[arg-type]
            except WireError:
                refused += 1
    assert refused > 2000
