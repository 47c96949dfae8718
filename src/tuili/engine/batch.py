"""Builds the arrays of one step from its chunks. Decides nothing: who computes what is the scheduler's choice."""

from __future__ import annotations

from collections.abc import Sequence as ListLike

import numpy as np

from tuili.backend import Batch, Int32
from tuili.engine.block_manager import BlockManager
from tuili.engine.rows import raw_row, sample_rows
from tuili.engine.sampling import SampleRow, allow_mask, sampling_arrays
from tuili.engine.sequence import Chunk, Sequence

SPARE_BLOCKS = 4  # table entries beyond the longest context, so that a kept batch need not grow with it


class BatchBuilder:
    """Builds the batch of every step; while the same sequences decode, one is kept and its arrays are rewritten.

    What a step changes then is counted up in place: the other arrays, and what a backend has read of
    their addresses, stay.
    """

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._batch: Batch | None = None  # kept
        self._sequences: list[Sequence] = []  # of the kept batch
        self._num_changes = 0  # of the tables, when they were copied last
        self._steps_left = 0  # until a sequence comes to another block

    def build(self, chunks: ListLike[Chunk]) -> Batch:
        """The step that computes `chunks`, valid until the next is built."""
        copies = self._blocks.take_copies()
        if self._batch is not None and not len(copies) and self._are_next(chunks):
            self._advance(self._batch, chunks)
            return self._batch
        batch = build_batch(chunks, self._blocks.tables, self._blocks.block_size, copies)
        self._batch = batch if not len(copies) and all(map(_is_steady, chunks)) else None
        self._sequences = [chunk.sequence for chunk in chunks]
        self._num_changes = -1
        return batch

    def _are_next(self, chunks: ListLike[Chunk]) -> bool:
        """Whether these are the tokens right after those of the kept batch, for which it has room."""
        if len(chunks) != len(self._sequences):
            return False
        for chunk, kept in zip(chunks, self._sequences, strict=True):
            if chunk.sequence is not kept or chunk.end != chunk.start + 1 or chunk.draft:
                return False
        assert self._batch is not None
        room: int = self._batch.block_tables.shape[2] * self._blocks.block_size
        return max([chunk.end for chunk in chunks]) <= room

    def _advance(self, batch: Batch, chunks: ListLike[Chunk]) -> None:
        # All chose a token in the step before: their tokens are all known by now, or none is.
        batch.carry[:] = chunks[0].is_carried
        batch.input_ids[:] = 0 if chunks[0].is_carried else [c.sequence.token_ids[c.start] for c in chunks]
        for counted in (batch.positions, batch.seq_lens, batch.sampling.position):
            np.add(counted, 1, out=counted)
        if self._steps_left and self._blocks.num_changes == self._num_changes:
            self._steps_left -= 1
            np.add(batch.slot_mapping, 1, out=batch.slot_mapping)
            return
        tables, size = self._blocks.tables, self._blocks.block_size
        np.take(tables[:, :, : batch.block_tables.shape[2]], batch.slots, axis=1, out=batch.block_tables, mode="clip")
        offsets = batch.positions % size
        np.multiply(tables[:, batch.slots, batch.positions // size], size, out=batch.slot_mapping)
        np.add(batch.slot_mapping, offsets, out=batch.slot_mapping)
        self._num_changes = self._blocks.num_changes
        self._steps_left = size - 1 - int(offsets.max())


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
