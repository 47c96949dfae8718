"""One answer in the making: its tokens, how far they are computed, and what ends it.

Knows token ids and sampling parameters; not blocks, batches or other sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from tuili.engine.beam_search import BeamSearch
from tuili.engine.cache.prefix_cache import HashChain
from tuili.engine.sampling.arrays import Bias, row_sampling
from tuili.engine.sampling.dry import DryRuns
from tuili.engine.sampling.history import TokenHistory
from tuili.engine.sampling.token_rules import goes_in_circles
from tuili.sampling_params import RepetitionDetectionParams
from tuili.types import CacheMiss, FinishReason, Resume, TokenDelta, TokenLogprobs, TokenRequest

Sink = Callable[[TokenDelta], None]
NO_POSITIONS = range(0)
REPETITION = "repetition_detected"  # stop_reason of an answer that goes in circles


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Prompt and output of one answer, or of several while they are still the same.

    `indexes` are the answers of n it stands for. All n share one sequence until the prompt is
    computed; then each first token starts a sequence of its own (fork).

        0 .......... num_cached_tokens ... num_computed_tokens ............ num_tokens
        | found in the prefix cache | computed | to compute: next chunk(s) |
    """

    __slots__ = (
        "__weakref__",
        "beams",
        "block_hashes",
        "cache_miss",
        "dry_runs",
        "history",
        "indexes",
        "max_len",
        "num_awaited",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_logprobs",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "order",
        "prompt_logprobs",
        "request",
        "sampler_state",
        "sampling",
        "scheduled_s",
        "sink",
        "slot",
        "status",
        "stop_ids",
        "stop_reason",
        "token_ids",
    )

    def __init__(
        self,
        request: TokenRequest,
        sink: Sink,
        *,
        arrival: int,
        max_len: int,
        block_hashes: HashChain,
        vocab_size: int,
    ) -> None:
        s = request.sampling
        self.request = request
        self.sink = sink
        self.order = (request.priority, arrival)
        self.indexes = list(range(s.n if request.beam_search is None else 1))
        self.max_len = max_len  # tokens of prompt and output at which it ends
        self.stop_ids = frozenset(s.stop_token_ids or ()) | frozenset(() if s.ignore_eos else request.eos_token_ids)
        self.beams: BeamSearch | None = None
        if request.beam_search is not None:
            self.beams = BeamSearch(request.beam_search, self.stop_ids, max_len - len(request.prompt_token_ids))
        self.sampling = row_sampling(request, self.stop_ids, vocab_size)
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_awaited = 0  # tokens that steps under way choose
        self.num_cached_tokens: int | None = None  # known once it is admitted for the first time
        self.cache_miss: CacheMiss | None = None  # why those are not more
        self.scheduled_s: float | None = None  # when that was, on the monotonic clock
        wanted = s.logprobs if self.beams is None else self.beams.num_candidates
        self.num_logprobs = _num_logprobs(wanted, vocab_size)
        self.num_prompt_logprobs = _num_logprobs(s.prompt_logprobs, vocab_size)
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None if s.prompt_logprobs is None else [None]
        self.sampler_state = self.sampling.sampler_state
        self.stop_reason: str | None = None  # what ended it, if not a token
        self.history = TokenHistory(self.token_ids, s.repeat_last_n) if self.sampling.uses_history else None
        self.dry_runs = None if self.sampling.dry is None else DryRuns(self.sampling.dry, self.token_ids)
        self.block_hashes = block_hashes
        self.status = Status.WAITING
        self.slot = -1

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens to compute before the next one can be chosen: 1 when decoding, 0 when the last one is on its way."""
        total = len(self.token_ids)
        if self.num_awaited:
            total += self.num_awaited
            if total >= self.max_len:
                return 0
        return total - self.num_computed_tokens

    @property
    def key(self) -> tuple[int, int, int]:
        """Sorts sequences: who comes first is served first and preempted last."""
        return (*self.order, self.indexes[0])

    def bias(self, num_ahead: int) -> Bias | None:
        """What to add to the logits of the token that `num_ahead` others precede, behind those awaited."""
        below = self.num_output_tokens + self.num_awaited + num_ahead < self.request.sampling.min_tokens
        return self.sampling.bias_below_min_tokens if below else self.sampling.bias

    @property
    def needs_logits(self) -> bool:
        """Whether its next token is chosen outside of the step, from raw logits."""
        return bool(self.sampling.processors) or (self.beams is not None and self.beams.needs_logits)

    @property
    def scores_prompt(self) -> bool:
        """Whether logprobs of prompt tokens are still to be found, so that none may be skipped."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt_tokens

    def append(self, token_id: int) -> FinishReason | None:
        """Takes the token that was chosen; the reason when it was the last one."""
        self._take(token_id)
        if token_id in self.stop_ids:
            return "stop"
        if len(self.token_ids) >= self.max_len:
            return "length"
        rule = self.request.sampling.repetition
        if rule is not None and self.num_output_tokens >= self.request.sampling.min_tokens and self._circles(rule):
            self.stop_reason = REPETITION
            return "stop"
        return None

    def _take(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if self.history is not None:
            self.history.add(token_id)
        if self.dry_runs is not None:
            self.dry_runs.add(token_id)

    def _circles(self, rule: RepetitionDetectionParams) -> bool:
        longest = rule.max_pattern_size * rule.min_count
        return goes_in_circles(self.token_ids[max(self.num_prompt_tokens, self.num_tokens - longest) :], rule)

    def answers(self) -> list[Sequence]:
        """The sequences that a request which has just come starts as: itself, and one for each answer it resumes."""
        places = self.request.resume
        if places is None:
            return [self]
        resumed = [self.fork(index)._at(place) for index, place in sorted(places.items()) if place.token_ids]
        self.indexes = [index for index in self.indexes if index in places]
        return [self, *resumed] if self.indexes else resumed

    def _at(self, place: Resume) -> Sequence:
        for token_id in place.token_ids:
            self._take(token_id)
        if place.sampler_state is not None:
            self.sampler_state = place.sampler_state
        return self

    def fork(self, index: int) -> Sequence:
        """Splits off answer `index`: the same tokens so far, but no slot yet."""
        twin = self._copy()
        self.indexes = [i for i in self.indexes if i != index]
        twin.indexes = [index]
        twin.block_hashes = self.block_hashes.copy()
        twin.status = Status.WAITING
        twin.slot = -1
        return twin

    def stand_in(self) -> Sequence:
        """The same answer so far, for another model to go on with in the same slot: it reports no logprobs."""
        twin = self._copy()
        twin.indexes = list(self.indexes)
        twin.num_logprobs = -1
        return twin

    def _copy(self) -> Sequence:
        twin = Sequence.__new__(Sequence)
        for name in Sequence.__slots__:
            if name != "__weakref__":
                setattr(twin, name, getattr(self, name))
        twin.token_ids = list(self.token_ids)
        twin.prompt_logprobs = None  # told once, with the first answer
        twin.read_as(self)
        return twin

    def read_as(self, other: Sequence) -> None:
        """Takes over what rows read of another's text: the texts are the same now."""
        self.history = None if other.history is None else other.history.copy()
        self.dry_runs = None if other.dry_runs is None else other.dry_runs.copy()


class Chunk(NamedTuple):
    """Tokens [start, end) of a sequence, computed in one step, and a draft of what may follow them.

    Its rows are settled when it is made, whatever becomes of the sequence meanwhile. A draft is computed as if it had
    been chosen; it comes only behind the last token of a single answer.
    """

    sequence: Sequence
    start: int
    end: int
    samples: tuple[int, ...]  # the answers whose next token is chosen from the logits at end - 1: none before the end
    scored: range  # prompt positions whose logprobs it finds; position p is predicted by token p - 1
    is_carried: bool  # its only token is the one that the step under way chooses
    draft: tuple[int, ...] = ()

    @staticmethod
    def of(sequence: Sequence, start: int, end: int) -> Chunk:
        """With the rows that these tokens have now."""
        num_known = len(sequence.token_ids)
        samples = tuple(sequence.indexes) if end == num_known + sequence.num_awaited else ()
        scored = NO_POSITIONS if sequence.prompt_logprobs is None else _scored(sequence, start, end)
        return Chunk(sequence, start, end, samples, scored, end > num_known)

    @property
    def num_tokens(self) -> int:
        return self.end - self.start + len(self.draft)

    @property
    def can_be_followed(self) -> bool:
        """Whether the step behind it can be built before the token that it chooses is known."""
        if not self.samples:
            return True
        is_one = len(self.samples) == 1 and self.sequence.beams is None
        return is_one and self.sequence.sampling.needs_no_token and not self.draft


def _scored(sequence: Sequence, start: int, end: int) -> range:
    assert sequence.prompt_logprobs is not None
    return range(max(start + 1, len(sequence.prompt_logprobs)), min(end + 1, sequence.num_prompt_tokens))


def _num_logprobs(wanted: int | None, vocab_size: int) -> int:
    """A request's count in the batch's terms: None is -1 (none), -1 is the whole vocabulary."""
    if wanted is None:
        return -1
    return vocab_size if wanted < 0 else min(wanted, vocab_size)
