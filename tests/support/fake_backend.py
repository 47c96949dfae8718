"""A backend whose answers depend on every cached token, so that any mistake with a block shows.

Each cache entry keeps its token id, its position and a chain over all tokens up to it. Writing a
token extends the chain *read through the block table*; a row's logits come from the chains and ids
it can see. It checks what a real backend must be able to rely on, and computes nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np

from tuili.backend import CARRIED_STATE, Batch, CacheGroup, Choices, Float32, Int32, SamplingArrays, StepResult, UInt32
from tuili.types import TokenRequest

VOCAB = 61
_MIX = 6364136223846793005
_MASK = (1 << 64) - 1


def chain_step(previous: int, token_id: int, position: int) -> int:
    mixed = (previous ^ (token_id * 0x9E3779B97F4A7C15 + position)) * _MIX + 1442695040888963407
    return (mixed ^ (mixed >> 29)) & _MASK


def chain_of(token_ids: list[int] | tuple[int, ...]) -> int:
    chain = 0
    for position, token_id in enumerate(token_ids):
        chain = chain_step(chain, token_id, position)
    return chain


def logits_of(chain: int) -> Float32:
    """[VOCAB] in steps of 1/8, so that ties and exact comparisons occur."""
    state = (np.arange(1, VOCAB + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)) ^ np.uint64(chain)
    state *= np.uint64(_MIX)
    return ((state >> np.uint64(40)) % np.uint64(64)).astype(np.float32) / np.float32(8)


def log_softmax(logits: Float32) -> Float32:
    shifted = logits.astype(np.float64) - logits.max()
    return (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)


def adjust(logits: Float32, history: dict[int, int], bias: dict[int, float], penalties: tuple) -> Float32:
    """Steps 1 and 2 of docs/sampling.md; history maps ids seen to their counts in the output."""
    repetition, presence, frequency = penalties
    out = logits.copy()
    for token_id, value in bias.items():
        out[token_id] += np.float32(value)
    for token_id, count in history.items():
        value = out[token_id]
        value = value / np.float32(repetition) if value > 0 else value * np.float32(repetition)
        out[token_id] = value - np.float32(frequency) * count - np.float32(presence) * (count > 0)
    return out


def draw(logits: Float32, temperature: float, seed: int, sample_index: int, position: int) -> int:
    """Greedy, or one of the eight best by a hash of what a draw may depend on."""
    if temperature == 0:
        return int(np.argmax(logits))
    best = np.argsort(-logits, kind="stable")[:8]
    best = best[logits[best] > -np.inf]
    pick = chain_step(chain_step(seed, sample_index, position), round(temperature * 1000), 7)
    return int(best[(pick >> 20) % len(best)])


def solo(request: TokenRequest, index: int, max_model_len: int) -> tuple[list[int], str]:
    """The answer by definition: no batch, no cache, no engine."""
    s = request.sampling
    stops = set(s.stop_token_ids or ()) | (set() if s.ignore_eos else set(request.eos_token_ids))
    tokens, output, chain = list(request.prompt_token_ids), [], chain_of(request.prompt_token_ids)
    penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
    mu = 2 * s.mirostat_tau
    while True:
        window = tokens[max(len(tokens) - s.repeat_last_n, 0) :]
        counted = {t: output.count(t) for t in tokens} if s.repeat_last_n < 0 else {t: window.count(t) for t in window}
        history = {} if penalties == (1.0, 0.0, 0.0) else counted
        bias = dict(s.logit_bias or {})
        bias |= {w[-1]: -np.inf for w in request.bad_words if list(w[:-1]) == output[len(output) - len(w) + 1 :]}
        if len(output) < s.min_tokens:
            bias |= dict.fromkeys(stops, -np.inf)
        logits = adjust(logits_of(chain), history, bias, penalties)
        for token, length in repeats(tokens).items() if s.dry_multiplier else ():
            if length >= s.dry_allowed_length:
                logits[token] -= np.float32(s.dry_multiplier * s.dry_base ** (length - s.dry_allowed_length))
        if s.allowed_token_ids is not None:
            logits[[i for i in range(VOCAB) if i not in s.allowed_token_ids]] = -np.inf
        token = draw(logits, s.temperature, request.seed + round(mu if s.mirostat else 0), index, len(tokens))
        mu += token % 5
        chain = chain_step(chain, token, len(tokens))
        tokens.append(token)
        output.append(token)
        if token in stops:
            return output, "stop"
        if len(output) == s.max_tokens or len(tokens) == max_model_len:
            return output, "length"


def repeats(tokens: list[int]) -> dict[int, int]:
    """For each id that followed an earlier occurrence of the text's end: how long the longest such end is."""
    found: dict[int, int] = {}
    for end in range(len(tokens) - 1):
        length = 0
        while length <= end and tokens[end - length] == tokens[-1 - length]:
            length += 1
        if length:
            found[tokens[end + 1]] = max(found.get(tokens[end + 1], 0), length)
    return found


class ContractViolation(BaseException):
    """The engine broke the backend's contract; no Exception, so that it is not taken for a failing device."""


@dataclass
class Plane:
    """The cache of one group."""

    token_ids: np.ndarray
    positions: np.ndarray
    chains: np.ndarray


@dataclass
class Handle:
    outcome: StepResult | Exception
    told: Callable[[], None] = lambda: None  # has been asked for its outcome

    def result(self) -> StepResult:
        self.told()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@dataclass
class FakeBackend:
    """Implements Backend over groups given as windows (None: full)."""

    windows: tuple[int | None, ...] = (None,)
    block_bytes: int = 1
    vocab_size: int = VOCAB
    fail_on: set[int] = field(default_factory=set)  # numbers of the steps that fail
    fail_late: bool = False  # in result() instead of execute()
    error: Exception = field(default_factory=lambda: RuntimeError("device lost at 0xdeadbeef"))
    num_steps: int = 0
    batches: list[Batch] = field(default_factory=list)
    keep_batches: bool = False
    closed: bool = False
    swap_s: float = 0.0  # that a byte takes to the host
    num_given_back: int = 0  # blocks
    is_frugal: bool = True  # what falls behind a window is to be freed before the next step
    is_asynchronous: bool = False
    num_stages: int = 1
    num_carried: int = 0  # tokens that came from the step before
    max_under_way: int = 0  # steps whose outcome nobody had asked for

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        self.block_size = block_size
        return tuple(
            CacheGroup(
                kind="full" if window is None else "window",
                block_bytes=self.block_bytes,
                block_size=block_size,
                window=window,
            )
            for window in self.windows
        )

    def allocate_cache(self, num_blocks: list[int]) -> None:
        self.num_blocks = list(num_blocks)
        self.last_tokens: dict[int, int] = {}  # by slot
        self.last_states: dict[int, float] = {}
        self.is_lost = False  # a step has failed and nobody knows yet
        self.under_way: set[int] = set()
        self.planes = [
            Plane(
                np.full(count * self.block_size, -1, np.int32),
                np.full(count * self.block_size, -1, np.int32),
                np.zeros(count * self.block_size, np.uint64),
            )
            for count in num_blocks
        ]

    def allocate_swap(self, num_blocks: list[int]) -> float:
        self.host_planes = [
            Plane(*(np.full(count * self.block_size, 7, dtype) for dtype in (np.int32, np.int32, np.uint64)))
            for count in num_blocks
        ]
        return self.swap_s

    def swap_out(self, copies: Int32) -> None:
        self._move(copies, self.planes, self.host_planes)

    def swap_in(self, copies: Int32) -> None:
        self._move(copies, self.host_planes, self.planes)

    def give_back_blocks(self, group: int, blocks: list[int]) -> None:
        self.num_given_back += len(set(blocks))
        for block in blocks:
            for array in (self.planes[group].token_ids, self.planes[group].positions):
                array[block * self.block_size : (block + 1) * self.block_size] = -7

    def execute(self, batch: Batch) -> Handle:
        self.num_steps += 1
        if self.keep_batches:
            self.batches.append(copy.deepcopy(batch))  # the next step may rewrite its arrays
        if self.num_steps in self.fail_on:
            self._scribble(batch)
            if self.fail_late:
                self.is_lost = True
                return Handle(self.error, self._tell_loss)
            raise self.error
        if self.is_lost:
            return Handle(self.error)
        try:
            self._check_shapes(batch)
            self._copy(batch.block_copies)
            self._check_ownership(batch)
            return self._started(self._compute(batch))
        except AssertionError as error:
            raise ContractViolation(str(error)) from error

    def _started(self, result: StepResult) -> Handle:
        number = self.num_steps
        self.under_way.add(number)
        self.max_under_way = max(self.max_under_way, len(self.under_way))
        return Handle(result, lambda: self.under_way.discard(number))

    def _tell_loss(self) -> None:
        self.is_lost = False

    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        chosen = [self._choose(row, sampling, r, allow_mask) for r, row in enumerate(logits)]
        return Choices(np.array([i for i, _ in chosen], np.int32), np.array([mu for _, mu in chosen], np.float32))

    def close(self) -> None:
        self.closed = True

    def _scribble(self, batch: Batch) -> None:
        """A step that fails leaves garbage everywhere."""
        for plane in self.planes:
            plane.token_ids[:] = -7
            plane.positions[:] = -7

    def _check_shapes(self, batch: Batch) -> None:
        T, S, R, G = len(batch.input_ids), len(batch.seq_lens), len(batch.sample_rows), len(self.windows)
        assert T > 0
        assert batch.block_tables.shape[:2] == (G, S)
        assert batch.slot_mapping.shape == (G, T)
        assert batch.positions.shape == (T,)
        assert batch.query_start[0] == 0
        assert batch.query_start[-1] == T
        assert (np.diff(batch.query_start) > 0).all()
        assert (np.diff(batch.sample_rows) >= 0).all()
        assert len(set(batch.slots.tolist())) == S
        assert batch.targets.shape == batch.num_logprobs.shape == (R,)
        for source in (batch, batch.sampling):
            for f in fields(source):
                array = getattr(source, f.name)
                if isinstance(array, np.ndarray):
                    assert array.flags.c_contiguous, f.name
                    bits = {"seed": np.uint64, "allow_mask": np.uint32, "carry": np.bool_, "want_logits": np.bool_}
                    wanted = bits.get(f.name)
                    floats = (
                        "temperature",
                        "top_p",
                        "min_p",
                        "bias_values",
                        "chain_values",
                        "dry_values",
                        "sampler_state",
                    )
                    if f.name in floats or f.name.endswith("_penalty"):
                        wanted = np.float32
                    assert array.dtype == (wanted or np.int32), f.name
        s = batch.sampling
        assert len(s.history_start) == len(s.bias_start) == R + 1
        assert s.history_start[-1] == len(s.history_ids) == len(s.history_counts)
        assert s.bias_start[-1] == len(s.bias_ids) == len(s.bias_values)
        assert s.chain_start[-1] == len(s.chain_kinds) == len(s.chain_values)
        assert s.dry_start[-1] == len(s.dry_ids) == len(s.dry_values)

    def _copy(self, copies: Int32) -> None:
        self._move(copies, self.planes, self.planes)

    def _move(self, copies: Int32, sources: list[Plane], targets: list[Plane]) -> None:
        size = self.block_size
        for group, source, target in copies.tolist():
            for name in ("token_ids", "positions", "chains"):
                entries = getattr(sources[group], name)[source * size : (source + 1) * size]
                getattr(targets[group], name)[target * size : (target + 1) * size] = entries

    def _check_ownership(self, batch: Batch) -> None:
        """A block that is written belongs to one sequence of the batch only."""
        for g in range(len(self.windows)):
            table = batch.block_tables[g]
            written = np.unique(batch.slot_mapping[g] // self.block_size)
            for block in written.tolist():
                assert block >= 0
                assert (table == block).any(axis=1).sum() == 1, f"block {block} is written while shared"

    def _compute(self, batch: Batch) -> StepResult:
        chains = np.zeros(len(batch.input_ids), dtype=np.uint64)
        input_ids = batch.input_ids.copy()
        assert self.is_asynchronous or not batch.carry.any()
        for s, seq_len in enumerate(batch.seq_lens.tolist()):
            first, last = batch.query_start[s], batch.query_start[s + 1]
            if batch.carry[s]:
                input_ids[last - 1] = self.last_tokens[int(batch.slots[s])]
                self.num_carried += 1
            assert batch.positions[first:last].tolist() == list(range(seq_len - int(last - first), seq_len))
            for t in range(first, last):
                chains[t] = self._write(batch, s, t, int(input_ids[t]))
        result = self._answer(self._with_carried(batch, input_ids), chains)
        for r, t in enumerate(batch.sample_rows.tolist()):
            if batch.targets[r] < 0:
                slot = int(batch.slots[np.searchsorted(batch.query_start, t, side="right") - 1])
                self.last_tokens[slot] = int(result.token_ids[r])
                self.last_states[slot] = float(result.sampler_state[r])
        return result

    def _with_carried(self, batch: Batch, input_ids: np.ndarray) -> Batch:
        """Histories in which -1 is the token it stands for, and the states that samplers go on from."""
        s = batch.sampling
        starts, ids, counts, states = [0], [], [], s.sampler_state.copy()
        for r, t in enumerate(batch.sample_rows.tolist()):
            if states[r] == CARRIED_STATE:
                place = np.searchsorted(batch.query_start, t, side="right") - 1
                assert batch.carry[place]
                states[r] = self.last_states[int(batch.slots[place])]
            own = slice(s.history_start[r], s.history_start[r + 1])
            seen = dict(zip(s.history_ids[own].tolist(), s.history_counts[own].tolist(), strict=True))
            if -1 in seen:
                assert batch.carry[np.searchsorted(batch.query_start, t, side="right") - 1]
                assert seen.pop(-1) == 0
                seen[int(input_ids[t])] = seen.get(int(input_ids[t]), 0) + 1
            ids += seen
            counts += seen.values()
            starts.append(len(ids))
        columns = {"history_start": starts, "history_ids": ids, "history_counts": counts}
        arrays = {name: np.array(column, np.int32) for name, column in columns.items()}
        return replace(batch, sampling=replace(s, sampler_state=states, **arrays))

    def _write(self, batch: Batch, s: int, t: int, token_id: int) -> int:
        """Writes token t in every group, then reads all that it can see."""
        position = int(batch.positions[t])
        found = set()
        for g, window in enumerate(self.windows):
            plane, table = self.planes[g], batch.block_tables[g, s]
            slot = int(table[position // self.block_size]) * self.block_size + position % self.block_size
            assert slot == batch.slot_mapping[g, t]
            previous = 0
            if position:
                before = position - 1
                assert table[before // self.block_size] >= 0
                previous = plane.chains[table[before // self.block_size] * self.block_size + before % self.block_size]
            chain = chain_step(int(previous), token_id, position)
            plane.token_ids[slot], plane.positions[slot], plane.chains[slot] = token_id, position, chain
            found.add(chain)
            visible = np.arange(0 if window is None else max(position - window + 1, 0), position + 1)
            blocks = table[visible // self.block_size]
            assert (blocks >= 0).all(), "a visible block was freed"
            entries = blocks * self.block_size + visible % self.block_size
            assert (plane.positions[entries] == visible).all(), "a visible entry was never written"
            if t == batch.query_start[s]:  # the chunk's other tokens extend what is checked here
                assert not self.is_frugal or (table[: visible[0] // self.block_size] == -1).all(), (
                    "a block outlives its window"
                )
                chains, ids = plane.chains[entries].tolist(), plane.token_ids[entries].tolist()
                for i, j in zip(visible[1:].tolist(), range(1, len(ids)), strict=True):
                    assert chains[j] == chain_step(chains[j - 1], ids[j], i), "a visible entry is another context's"
        assert len(found) == 1, "groups disagree about the context"
        return found.pop()

    def _answer(self, batch: Batch, chains: np.ndarray) -> StepResult:
        R, s = len(batch.sample_rows), batch.sampling
        width = max([0, *batch.num_logprobs.tolist()])
        logit_rows = None if batch.want_logits is None else np.flatnonzero(batch.want_logits)
        result = StepResult(
            token_ids=np.zeros(R, np.int32),
            logprobs=np.full(R, np.nan, np.float32),
            ranks=np.zeros(R, np.int32),
            top_ids=np.full((R, width), -1, np.int32),
            top_logprobs=np.full((R, width), np.nan, np.float32),
            sampler_state=np.full(R, np.nan, np.float32),
            logits=None if logit_rows is None else np.full((len(logit_rows), VOCAB), np.nan, np.float32),
            logit_rows=logit_rows,
        )
        for r, t in enumerate(batch.sample_rows.tolist()):
            logits = logits_of(int(chains[t]))
            token_id = int(batch.targets[r])
            if batch.want_logits is not None and batch.want_logits[r]:
                result.logits_of(r)[:] = logits
            if token_id < 0:
                assert int(s.position[r]) == batch.positions[t] + 1
                token_id, result.sampler_state[r] = self._choose(logits, s, r, batch.allow_mask)
            result.token_ids[r] = token_id
            if (count := int(batch.num_logprobs[r])) >= 0:
                logprobs = log_softmax(logits)
                best = np.argsort(-logits, kind="stable")[:count]
                result.logprobs[r] = logprobs[token_id]
                result.ranks[r] = 1 + (logits > logits[token_id]).sum()
                result.top_ids[r, :count] = best
                result.top_logprobs[r, :count] = logprobs[best]
        return result

    def _choose(self, logits: Float32, s: SamplingArrays, r: int, allow_mask: UInt32 | None) -> tuple[int, float]:
        """A token, and what mirostat's mu is said to become."""
        history = slice(s.history_start[r], s.history_start[r + 1])
        bias, dry = slice(s.bias_start[r], s.bias_start[r + 1]), slice(s.dry_start[r], s.dry_start[r + 1])
        ids = s.history_ids[history].tolist()
        assert len(set(ids)) == len(ids)
        adjusted = adjust(
            logits,
            dict(zip(ids, s.history_counts[history].tolist(), strict=True)),
            dict(zip(s.bias_ids[bias].tolist(), s.bias_values[bias].tolist(), strict=True)),
            (s.repetition_penalty[r], s.presence_penalty[r], s.frequency_penalty[r]),
        )
        adjusted[s.dry_ids[dry]] -= s.dry_values[dry]
        if allow_mask is not None:
            adjusted[np.unpackbits(allow_mask[r].view(np.uint8), bitorder="little")[:VOCAB] == 0] = -np.inf
        place = (int(s.seed[r]), int(s.sample_index[r]), int(s.position[r]))
        if not np.isnan(s.sampler_state[r]):
            place = (place[0] + round(float(s.sampler_state[r])), *place[1:])
        token_id = draw(adjusted, float(s.temperature[r]), *place)
        return token_id, float(s.sampler_state[r]) + token_id % 5
