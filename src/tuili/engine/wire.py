"""What the two ends of an engine process say to each other: messages as msgpack, each behind its length.

    frame = length of the body (4 bytes, big endian) + body

Types are checked as a body is decoded; whatever is not a message raises WireError, and its connection is dropped.
Knows requests, deltas and numbers; no sockets, no processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from collections.abc import Sequence as ListLike
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec

from tuili.beam_search_params import BeamSearchParams
from tuili.engine.stats import EngineStats
from tuili.errors import InvalidRequestError, TuiliError
from tuili.types import (
    BeamScore,
    CacheMiss,
    FinishReason,
    Logprob,
    Resume,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
    TokenRequest,
)

LENGTH_BYTES = 4
# Beside all messages: to write to standard error what every thread is at. Windows has no such signal, and it ends.
TELL_SIGNAL = getattr(signal, "SIGUSR2", signal.SIGTERM)
MAX_FRAME_BYTES = 256 << 20  # logprobs over a whole vocabulary are the largest of messages
_MAX_KNOWN_BYTES = 4096  # of sampling: lists of token ids may take 10 MB, and no more than a few come again
EXIT_INTERNAL, EXIT_DEVICE = 70, 71  # of a process whose engine, or device, can do no more (EX_SOFTWARE, EX_OSERR)

Entry = tuple[int, float, int | None]  # token id, logprob, rank
Message = TypeVar("Message")


class WireError(Exception):
    """Bytes that are no message of the other end's."""


class ErrorNote(msgspec.Struct, frozen=True):
    """A TuiliError on its way."""

    code: str
    message: str
    param: str | None = None


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load the model at `path`. options are the runtime's, as msgpack; stamps refuse files that have become others."""

    path: str
    options: msgspec.Raw
    stamps: tuple[tuple[str, int, int, int], ...] | None = None


class Generate(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """A TokenRequest; deltas come back under `stream`.

    sampling, as msgpack, holds what differs from the defaults, but no seed: the request's own is the one that counts.
    """

    stream: int
    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: msgspec.Raw
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    bad_words: tuple[tuple[int, ...], ...] = ()
    dry_breakers: dict[int, tuple[tuple[int, ...], ...]] = {}
    beam_search: BeamSearchParams | None = None
    resume: dict[int, Resume] | None = None


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End a stream, or one answer of it."""

    stream: int
    index: int | None = None


class ResizeCache(msgspec.Struct, frozen=True, tag="resize_cache"):
    """Use more or less of the cache, as engine.cache_size does it. Answered by a CacheResized."""

    num_bytes: int
    may_forget: bool = False


class Close(msgspec.Struct, frozen=True, tag="close"):
    """End every request, free the memory, exit."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """What is known of an engine once its model is loaded. weight_bytes 0 and isa None: the backend does not say."""

    process_id: int
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    capacity: int | None  # as engine.admission wants it
    block_size: int
    num_blocks: tuple[int, ...]  # per cache group
    cache_bytes: int
    weight_bytes: int
    kv_cache_dtype: str
    num_threads: int
    isa: str | None
    load_s: float
    stamps: tuple[tuple[str, int, int, int], ...]  # of the model's files


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model could not be loaded; the process ends."""

    error: ErrorNote


class CacheResized(msgspec.Struct, frozen=True, tag="cache_resized"):
    """What the cache takes when it is full, from now on."""

    num_bytes: int


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The process runs, whatever its engine's thread is at. stats are None until the model is loaded."""

    stats: EngineStats | None
    own_bytes: int  # of its memory
    mapped_bytes: int  # of files, which the system may drop
    cpu_s: float = 0.0  # of processors' time used so far, by all but the heart


class WireDelta(msgspec.Struct, omit_defaults=True, gc=False):
    """A TokenDelta of a stream."""

    stream: int
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    stop_reason: str | None = None
    logprobs: list[list[Entry]] | None = None
    prompt_logprobs: list[list[Entry] | None] | None = None
    sampler_state: float | None = None
    num_cached_tokens: int = 0
    cache_miss: CacheMiss | None = None
    scheduled_s: float | None = None
    error: ErrorNote | None = None
    beam: BeamScore | None = None


class Deltas(msgspec.Struct, frozen=True, tag="deltas"):
    """All that came of a step."""

    deltas: list[WireDelta]


ToEngine = Load | Generate | Abort | ResizeCache | Close
FromEngine = EngineFacts | LoadFailed | Heartbeat | CacheResized | Deltas

_encoder = msgspec.msgpack.Encoder()


def frame(message: ToEngine | FromEngine) -> bytearray:
    """A message as bytes to send. Raises WireError for one larger than the other end would read."""
    body = bytearray(LENGTH_BYTES)
    _encoder.encode_into(message, body, LENGTH_BYTES)
    size = len(body) - LENGTH_BYTES
    if size > MAX_FRAME_BYTES:
        raise WireError(f"a message of {size} bytes, at most {MAX_FRAME_BYTES} can be sent")
    body[:LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
    return body


class FrameReader(Generic[Message]):
    """Cuts a stream of bytes into messages of one kind."""

    def __init__(self, kind: Any, max_bytes: int = MAX_FRAME_BYTES) -> None:
        """kind is ToEngine or FromEngine."""
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)
        self._max_bytes = max_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete now. Raises WireError; what follows such an error means nothing."""
        self._pending += data
        start, end = 0, len(self._pending)
        with memoryview(self._pending) as view:
            while end - start >= LENGTH_BYTES:
                size = int.from_bytes(view[start : start + LENGTH_BYTES], "big")
                if size > self._max_bytes:
                    raise WireError(f"a frame of {size} bytes, at most {self._max_bytes} are allowed")
                if end - start - LENGTH_BYTES < size:
                    break
                start += LENGTH_BYTES + size
                yield decoded(self._decoder, bytes(view[start - size : start]))
        del self._pending[:start]


def decoded(decoder: msgspec.msgpack.Decoder[Message], body: bytes) -> Message:
    """Raises WireError."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"a frame that is no message: {error}") from None


def note_of(error: TuiliError) -> ErrorNote:
    return ErrorNote(error.code, str(error), getattr(error, "param", None))


def error_of(note: ErrorNote) -> TuiliError:
    """The error as the class of its code; a code that nobody knows gives the root of the tree."""
    kind = _KINDS.get(note.code, TuiliError)
    if issubclass(kind, InvalidRequestError):
        return kind(note.message, param=note.param)
    return kind(note.message)


def _kinds(root: type[TuiliError]) -> dict[str, type[TuiliError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found = _kinds(kind) | found
    return found


_KINDS = _kinds(TuiliError)


def generate_message(stream: int, request: TokenRequest) -> Generate:
    """Raises InvalidRequestError for what does not leave this process."""
    if request.sampling.logits_processors:
        raise InvalidRequestError(
            "logits_processors are called where the engine runs: load the model in this process for them",
            param="logits_processors",
        )
    sampling = request.sampling.changed()
    sampling.pop("seed", None)
    return Generate(
        stream=stream,
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        sampling=msgspec.Raw(_encoder.encode(sampling)),
        seed=request.seed,
        eos_token_ids=request.eos_token_ids,
        priority=request.priority,
        cache_salt=request.cache_salt,
        bad_words=request.bad_words,
        dry_breakers=dict(request.dry_breakers),
        beam_search=request.beam_search,
        resume=None if request.resume is None else dict(request.resume),
    )


def token_request(message: Generate) -> TokenRequest:
    """Raises InvalidRequestError for sampling parameters that are none, WireError for what is none at all."""
    packed = bytes(message.sampling)
    sampling = _known_sampling(packed) if len(packed) <= _MAX_KNOWN_BYTES else _sampling(packed)
    return TokenRequest(
        request_id=message.request_id,
        prompt_token_ids=message.prompt_token_ids,
        sampling=sampling,
        seed=message.seed,
        eos_token_ids=message.eos_token_ids,
        priority=message.priority,
        cache_salt=message.cache_salt,
        bad_words=message.bad_words,
        dry_breakers=message.dry_breakers,
        beam_search=message.beam_search,
        resume=message.resume,
    )


@lru_cache(maxsize=64)
def _known_sampling(packed: bytes) -> SamplingParams:
    """What clients ask for again and again is checked once."""
    return _sampling(packed)


def _sampling(packed: bytes) -> SamplingParams:
    fields = decoded(msgspec.msgpack.Decoder(dict[str, Any]), packed)
    try:
        return SamplingParams(**fields)
    except TypeError:
        raise InvalidRequestError("sampling has a field that is not known", param="sampling") from None


class _Count(msgspec.Struct):
    n: int = 1


def asked_indexes(message: Generate) -> ListLike[int]:
    """The answers that it is to bring, also where token_request raises InvalidRequestError."""
    if message.resume is not None:
        return sorted(message.resume)
    return range(decoded(msgspec.msgpack.Decoder(_Count), bytes(message.sampling)).n)


def wire_delta(stream: int, delta: TokenDelta) -> WireDelta:
    logprobs, prompt_logprobs, error = delta.logprobs, delta.prompt_logprobs, delta.error
    return WireDelta(
        stream,
        delta.index,
        delta.token_ids,
        delta.finish_reason,
        delta.stop_token_id,
        delta.stop_reason,
        None if logprobs is None else [_entries(found) for found in logprobs],
        None if prompt_logprobs is None else [None if found is None else _entries(found) for found in prompt_logprobs],
        delta.sampler_state,
        delta.num_cached_tokens,
        delta.cache_miss,
        delta.scheduled_s,
        None if error is None else note_of(error),
        delta.beam,
    )


def token_delta(request_id: str, wire: WireDelta) -> TokenDelta:
    logprobs, prompt_logprobs, error = wire.logprobs, wire.prompt_logprobs, wire.error
    return TokenDelta(
        request_id=request_id,
        index=wire.index,
        token_ids=wire.token_ids,
        finish_reason=wire.finish_reason,
        stop_token_id=wire.stop_token_id,
        stop_reason=wire.stop_reason,
        logprobs=None if logprobs is None else tuple([_logprobs(entries) for entries in logprobs]),
        prompt_logprobs=None
        if prompt_logprobs is None
        else tuple([None if e is None else _logprobs(e) for e in prompt_logprobs]),
        sampler_state=wire.sampler_state,
        num_cached_tokens=wire.num_cached_tokens,
        cache_miss=wire.cache_miss,
        scheduled_s=wire.scheduled_s,
        error=None if error is None else error_of(error),
        beam=wire.beam,
    )


def _entries(found: TokenLogprobs) -> list[Entry]:
    return [(token_id, value.logprob, value.rank) for token_id, value in found.items()]


def _logprobs(entries: list[Entry]) -> TokenLogprobs:
    return {token_id: Logprob(logprob, rank) for token_id, logprob, rank in entries}
