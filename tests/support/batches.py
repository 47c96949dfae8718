"""Drives a Backend directly, block by block, without the engine. Knows the Batch contract only."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuili.backend import Backend, Batch, SamplingArrays, StepResult

NEUTRAL: Mapping[str, tuple[type[np.generic], float]] = {
    "temperature": (np.float32, 0),
    "top_k": (np.int32, 0),
    "top_p": (np.float32, 1),
    "min_p": (np.float32, 0),
    "repetition_penalty": (np.float32, 1),
    "presence_penalty": (np.float32, 0),
    "frequency_penalty": (np.float32, 0),
    "seed": (np.uint64, 0),
    "sample_index": (np.int32, 0),
    "position": (np.int32, 0),
    "sampler_state": (np.float32, np.nan),
}


def sampling_arrays(rows: Sequence[Mapping[str, Any]]) -> SamplingArrays:
    """One mapping per row; beside the fields' own names: history {id: output count}, bias {id: value}, dry
    {id: value} and chain [(kind, *values)].
    """
    columns = {
        name: np.array([row.get(name, value) for row in rows], dtype) for name, (dtype, value) in NEUTRAL.items()
    }
    histories, biases, dries = ([row.get(name, {}) for row in rows] for name in ("history", "bias", "dry"))
    chains = [row.get("chain", []) for row in rows]
    steps = [(*step, 0, 0, 0)[:4] for chain in chains for step in chain]
    return SamplingArrays(
        **columns,
        history_start=np.cumsum([0, *map(len, histories)], dtype=np.int32),
        history_ids=np.array([i for h in histories for i in h], np.int32),
        history_counts=np.array([n for h in histories for n in h.values()], np.int32),
        bias_start=np.cumsum([0, *map(len, biases)], dtype=np.int32),
        bias_ids=np.array([i for b in biases for i in b], np.int32),
        bias_values=np.array([v for b in biases for v in b.values()], np.float32),
        chain_start=np.cumsum([0, *map(len, chains)], dtype=np.int32),
        chain_kinds=np.array([step[0] for step in steps], np.int32),
        chain_values=np.array([step[1:] for step in steps], np.float32).reshape(-1, 3),
        dry_start=np.cumsum([0, *map(len, dries)], dtype=np.int32),
        dry_ids=np.array([i for d in dries for i in d], np.int32),
        dry_values=np.array([v for d in dries for v in d.values()], np.float32),
    )


UNREAD: Sequence[tuple[Mapping[str, np.ndarray], str]] = (
    ({"adapter_ids": np.zeros(1, np.int32)}, "adapter_ids"),
    ({"input_embeds": np.zeros((1, 32), np.float32)}, "input_embeds"),
    ({"positions": np.zeros((3, 1), np.int32)}, r"positions \[3, T\]"),
)  # fields that no backend implements, and how a refusal names them


def greedy(num_rows: int) -> SamplingArrays:
    return sampling_arrays([{}] * num_rows)


@dataclass(slots=True)
class Text:
    """One sequence: how many tokens are cached, its slot and a block table per cache group."""

    slot: int
    length: int = 0
    tables: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that a sequence adds in a step; logits are wanted for the last `num_rows` of them."""

    text: Text
    token_ids: Sequence[int]
    num_rows: int = 1
    carry: bool = False


class Driver:
    """Hands out blocks in shuffled order and builds batches."""

    def __init__(self, backend: Backend, *, num_blocks: int = 64, block_size: int = 16, seed: int = 0) -> None:
        self.backend = backend
        self.block_size = block_size
        self.groups = backend.cache_groups(block_size)
        backend.allocate_cache([num_blocks] * len(self.groups))
        self._free = [random.Random(seed + g).sample(range(num_blocks), num_blocks) for g in range(len(self.groups))]
        self._num_texts = 0

    def text(self) -> Text:
        self._num_texts += 1
        return Text(slot=self._num_texts - 1, tables=[[] for _ in self.groups])

    def fork(self, text: Text) -> tuple[Text, list[tuple[int, int, int]]]:
        """A text that goes on from this one: full blocks are shared, of the others there are copies to be made."""
        twin, copies = self.text(), []
        twin.length, num_full = text.length, text.length // self.block_size
        for g, table in enumerate(text.tables):
            twin.tables[g] = table[:num_full]
            for block in table[num_full:]:
                twin.tables[g].append(self.new_block(g))
                copies.append((g, block, twin.tables[g][-1]))
        return twin, copies

    def new_block(self, group: int) -> int:
        return self._free[group].pop()

    def batch(self, works: Sequence[Work], copies: Sequence[tuple[int, int, int]] = (), **changes: Any) -> Batch:
        """Extends each text by its tokens. `changes` are Batch fields that differ from a plain greedy step."""
        positions, slots, rows, query_start = [], [[] for _ in self.groups], [], [0]
        for work in works:
            first, work.text.length = work.text.length, work.text.length + len(work.token_ids)
            span = range(first, work.text.length)
            positions += span
            query_start.append(len(positions))
            rows += range(len(positions) - work.num_rows, len(positions))
            for g, table in enumerate(work.text.tables):
                while len(table) * self.block_size < work.text.length:
                    table.append(self.new_block(g))
                slots[g] += [table[p // self.block_size] * self.block_size + p % self.block_size for p in span]
        width = max(len(table) for work in works for table in work.text.tables)
        tables = [[w.text.tables[g] + [-1] * (width - len(w.text.tables[g])) for w in works] for g in range(len(slots))]
        fields: dict[str, Any] = {
            "input_ids": np.array([i for work in works for i in work.token_ids], np.int32),
            "positions": np.array(positions, np.int32),
            "query_start": np.array(query_start, np.int32),
            "seq_lens": np.array([work.text.length for work in works], np.int32),
            "block_tables": np.array(tables, np.int32),
            "slot_mapping": np.array(slots, np.int32),
            "block_copies": np.array(copies, np.int32).reshape(-1, 3),
            "slots": np.array([work.text.slot for work in works], np.int32),
            "carry": np.array([work.carry for work in works], np.bool_),
            "sample_rows": np.array(rows, np.int32),
            "targets": np.full(len(rows), -1, np.int32),
            "num_logprobs": np.full(len(rows), -1, np.int32),
            "sampling": greedy(len(rows)),
            "want_logits": True,
        }
        fields |= changes
        if isinstance(fields["want_logits"], bool):
            fields["want_logits"] = np.ones(len(fields["sample_rows"]), np.bool_) if fields["want_logits"] else None
        return Batch(**fields)

    def step(self, works: Sequence[Work], **changes: Any) -> StepResult:
        return self.backend.execute(self.batch(works, **changes)).result()

    def logits(self, token_ids: Sequence[int], *, chunk: int | None = None) -> np.ndarray:
        """Logits [len(token_ids), vocab] of a fresh text, computed in chunks."""
        text, size = self.text(), chunk or len(token_ids)
        parts = [token_ids[i : i + size] for i in range(0, len(token_ids), size)]
        results = [self.step([Work(text, part, len(part))]) for part in parts]
        return np.concatenate([result.logits for result in results if result.logits is not None])
