"""A request on its way through engines that may die: what it has got, and how suspicious it has become.

Pure state: pushed by the carrier, read by whoever asked. Knows no processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tuili.engine.client import Stream
from tuili.errors import TuiliError
from tuili.types import Resume, TokenDelta, TokenRequest

SUSPICIOUS = 2  # strikes from which a request is looked at alone
MAX_PROOF = 32  # deltas that the most suspicious must bring
INNOCENT = 64  # deltas after which strikes are forgotten


class Flight(Stream):
    """A stream that outlives the engine it was submitted to.

    Each death of an engine that had it is a strike. From the second on it is a suspect until it has brought, alone, as
    many deltas as its strikes ask for: one, then twice as many each time, as what kills the engine may come a little
    after where a replay begins.
    """

    def __init__(self, request: TokenRequest, on_news: Callable[[Flight, bool], None]) -> None:
        """on_news is called after deltas came, and told whether there were tokens among them."""
        super().__init__(request)
        self.number: int | None = None  # at the engine that has it
        self.was_lost = False  # with the engine that had it, which is not dealt with yet
        self.strikes = 0
        self._is_on_trial = False
        self._num_new = 0  # deltas since it was submitted last
        self._on_news = on_news
        places = request.resume or {}
        self._tokens = {i: list(places[i].token_ids) if i in places else [] for i in request.indexes}
        self._states = {i: places[i].sampler_state if i in places else None for i in request.indexes}
        self._has_prompt_logprobs = False
        self._aborted: set[int] = set()

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what killed its engines."""
        return self._is_on_trial and bool(self.unfinished)

    def put(self, deltas: Sequence[TokenDelta]) -> None:
        has_tokens = False
        for delta in deltas:
            self._tokens[delta.index] += delta.token_ids
            has_tokens |= bool(delta.token_ids)
            if delta.sampler_state is not None:
                self._states[delta.index] = delta.sampler_state
            self._has_prompt_logprobs |= delta.prompt_logprobs is not None
        self._num_new += len(deltas)
        if self._is_on_trial and self._num_new >= min(1 << (self.strikes - SUSPICIOUS), MAX_PROOF):
            self._is_on_trial = False
        if self._num_new >= INNOCENT:
            self.strikes = 0
        super().put(deltas)
        self._on_news(self, has_tokens)

    def submitted(self, number: int) -> None:
        """An engine has it."""
        self.number, self._num_new = number, 0

    def strike(self) -> None:
        """It was there when an engine died."""
        self.strikes += 1
        self.was_lost, self._is_on_trial = False, self.strikes >= SUSPICIOUS

    def lose(self, error: TuiliError) -> None:
        """Its engine has died."""
        self.was_lost = True
        self.pause()

    def pause(self) -> None:
        """No engine has it any more: what was asked to end has ended, the rest waits."""
        self.number = None
        for index in self._aborted & self.unfinished:
            self.end("abort", index=index)

    def abort(self, index: int | None) -> None:
        """Ends answers here if no engine has them; else notes that the engine was asked to."""
        if self.number is None:
            self.end("abort", index=index)
        else:
            self._aborted |= self.unfinished if index is None else {index}

    def rest(self) -> TokenRequest:
        """What is left to ask for. A beam search, whose answers all come at its end, starts over."""
        request = self.request
        if request.beam_search is not None or self._is_untouched:
            return request
        places = {i: Resume(tuple(self._tokens[i]), self._states[i]) for i in sorted(self.unfinished)}
        sampling = replace(request.sampling, prompt_logprobs=None) if self._has_prompt_logprobs else request.sampling
        return replace(request, sampling=sampling, resume=places)

    @property
    def _is_untouched(self) -> bool:
        return len(self.unfinished) == len(self.request.indexes) and not any(self._tokens.values())
