"""Builds the arrays of one step from its chunks. Decides nothing: who computes what is the scheduler's choice."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass

import numpy as np

from tuili.backend import Batch, Int32
from tuili.engine.cache.block_manager import BlockManager
from tuili.engine.rows import raw_row, sample_rows
from tuili.engine.sampling.arrays import SampleRow, allow_mask, sampling_arrays
from tuili.engine.sequence import Chunk, Sequence

SPARE_BLOCKS = 4  # table entries beyond the longest context, so that a kept batch need not grow with it


@dataclass
class KeptBatch:
    """A batch of sequences that go on token by token."""

    batch: Batch
    sequences: list[Sequence]
    num_changes: int = -1  # of the tables, when they were copied last
    steps_left: int = 0  # until a sequence comes to another block

    def is_of(self, chunks: ListLike[Chunk]) -> bool:
        """Whether these are the same sequences, each with one token."""
        if len(chunks) != len(self.sequences):
            return False
        for chunk, kept in zip(chunks, self.sequences, strict=True):
            if chunk.sequence is not kept or chunk.end != chunk.start + 1 or chunk.draft:
                return False
        return True


class BatchBuilder:
    """Builds the batch of every step; while the same sequences decode, theirs is kept and its arrays are rewritten.

    What a step changes then is counted up in place: the other arrays, and what a backend has read of
    their addresses, stay. A sequence's last step is that of the kept batch it is in, and of no other.
    """

    def __init__(self, blocks: BlockManager, num_kept: int = 1) -> None:
        """num_kept batches take turns."""
        self._blocks = blocks
        self._num_kept = num_kept
        self._kept: list[KeptBatch] = []  # the one used last comes last

    def build(self, chunks: ListLike[Chunk]) -> Batch:
        """The step that computes `chunks`, valid until the next is built."""
        copies = self._blocks.take_copies()
        if not len(copies) and (kept := self._next_of(chunks)) is not None:
            return kept
        batch = build_batch(chunks, self._blocks.tables, self._blocks.block_size, copies)
        own = {chunk.sequence for chunk in chunks}
        others = [kept for kept in self._kept if own.isdisjoint(kept.sequences)]
        self._kept = others[max(0, len(others) + 1 - self._num_kept) :]
        if not len(copies) and all(map(_is_steady, chunks)):
            self._kept.append(KeptBatch(batch, [chunk.sequence for chunk in chunks]))
        return batch

    def forget(self, sequence: Sequence) -> None:
        """It leaves its slot."""
        self._kept = [kept for kept in self._kept if sequence not in kept.sequences]

    def _next_of(self, chunks: ListLike[Chunk]) -> Batch | None:
        """The kept batch whose sequences go on with these tokens, for which it has room, with their numbers."""
        for i, kept in enumerate(self._kept):
            if kept.is_of(chunks):
                if max([chunk.end for chunk in chunks]) > kept.batch.block_tables.shape[2] * self._blocks.block_size:
                    return None
                self._kept.append(self._kept.pop(i))
                self._advance(kept, chunks)
                return kept.batch
        return None

    def _advance(self, kept: KeptBatch, chunks: ListLike[Chunk]) -> None:
        # All chose a token in the step before: their tokens are all known by now, or none is.
        batch = kept.batch
        batch.carry[:] = chunks[0].is_carried
        batch.input_ids[:] = 0 if chunks[0].is_carried else [c.sequence.token_ids[c.start] for c in chunks]
        for counted in (batch.positions, batch.seq_lens, batch.sampling.position):
            np.add(counted, 1, out=counted)
        if kept.steps_left and self._blocks.num_changes == kept.num_changes:
            kept.steps_left -= 1
            np.add(batch.slot_mapping, 1, out=batch.slot_mapping)
            return
        tables, size = self._blocks.tables, self._blocks.block_size
        np.take(tables[:, :, : batch.block_tables.shape[2]], batch.slots, axis=1, out=batch.block_tables, mode="clip")
        offsets = batch.positions % size
        np.multiply(tables[:, batch.slots, batch.positions // size], size, out=batch.slot_mapping)
        np.add(batch.slot_mapping, offsets, out=batch.slot_mapping)
        kept.num_changes = self._blocks.num_changes
        kept.steps_left = size - 1 - int(offsets.max())


def _is_steady(chunk: Chunk) -> bool:
    """Whether the sequence goes on token by token, with the same sampling arrays but for the position."""
    sequence = chunk.sequence
    is_decode = chunk.num_tokens == 1 and len(chunk.samples) == 1 and not chunk.scored
    return is_decode and sequence.sampling.is_steady and sequence.bias(0) is sequence.sampling.bias


def build_batch(chunks: ListLike[Chunk], tables: Int32, block_size: int, block_copies: Int32) -> Batch:
    """The step that computes `chunks`.

    tables [group, slot, block] are the block tables. Rows come in the order of the chunks: of each
    first its scored prompt positions, then its samples, which all read the token before its end, then a
    sample after each token of its draft.
    """
    slots = np.array([chunk.sequence.slot for chunk in chunks], dtype=np.int32)
    starts = np.array([chunk.start for chunk in chunks], dtype=np.int32)
    lengths = np.array([chunk.num_tokens for chunk in chunks], dtype=np.int32)
    ends = starts + lengths
    query_start = np.zeros(len(chunks) + 1, dtype=np.int32)
    np.cumsum(lengths, out=query_start[1:])
    input_ids: list[int] = []
    for chunk in chunks:
        input_ids += (0,) if chunk.is_carried else chunk.sequence.token_ids[chunk.start : chunk.end]
        input_ids += chunk.draft
    positions = np.arange(len(input_ids), dtype=np.int32) + np.repeat(starts - query_start[:-1], lengths)
    blocks = tables[:, np.repeat(slots, lengths), positions // block_size]
    sample_rows, targets, counts, rows, are_raw = _rows(chunks, query_start.tolist())
    return Batch(
        input_ids=np.array(input_ids, dtype=np.int32),
        positions=positions,
        query_start=query_start,
        seq_lens=ends,
        block_tables=np.take(tables[:, :, : -(-int(ends.max()) // block_size) + SPARE_BLOCKS], slots, axis=1),
        slot_mapping=np.ascontiguousarray(blocks * np.int32(block_size) + positions % block_size),
        block_copies=block_copies,
        slots=slots,
        carry=np.array([chunk.is_carried for chunk in chunks], dtype=np.bool_),
        sample_rows=np.array(sample_rows, dtype=np.int32),
        targets=np.array(targets, dtype=np.int32),
        num_logprobs=np.array(counts, dtype=np.int32),
        sampling=sampling_arrays(rows),
        allow_mask=allow_mask(rows),
        want_logits=np.array(are_raw, dtype=np.bool_) if any(are_raw) else None,
    )


def _rows(
    chunks: ListLike[Chunk], query_start: list[int]
) -> tuple[list[int], list[int], list[int], list[SampleRow], list[bool]]:
    """Token index, target, number of logprobs and sampling of every row, and whether its raw logits are wanted."""
    tokens: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    rows: list[SampleRow] = []
    are_raw: list[bool] = []
    for chunk, first in zip(chunks, query_start, strict=False):
        sequence = chunk.sequence
        for position in chunk.scored:
            tokens.append(first + position - 1 - chunk.start)
            targets.append(sequence.token_ids[position])
            counts.append(sequence.num_prompt_logprobs)
            rows.append(SampleRow(sequence.sampling, 0, position))
            are_raw.append(False)
        last = first + chunk.end - chunk.start - 1
        for index in chunk.samples:
            count = 1 + len(chunk.draft)
            tokens += range(last, last + count)
            targets += [-1] * count
            counts += [sequence.num_logprobs] * count
            are_raw += [sequence.needs_logits] * count
            if sequence.sampling.processors or sequence.beams:  # chosen elsewhere, and never drafted
                rows.append(raw_row(index, chunk.end))
            else:
                rows += sample_rows(sequence, index, chunk.end, chunk.draft)
    return tokens, targets, counts, rows, are_raw
