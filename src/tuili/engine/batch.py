"""Builds the arrays of one step from its chunks. Decides nothing: who computes what is the scheduler's choice."""

from __future__ import annotations

from collections.abc import Sequence as ListLike

import numpy as np

from tuili.backend import Batch, Int32
from tuili.engine.sampling import SampleRow, sampling_arrays
from tuili.engine.sequence import Chunk


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
        input_ids += chunk.sequence.token_ids[chunk.start : chunk.end]
        input_ids += chunk.draft
    positions = np.arange(len(input_ids), dtype=np.int32) + np.repeat(starts - query_start[:-1], lengths)
    blocks = tables[:, np.repeat(slots, lengths), positions // block_size]
    sample_rows, targets, counts, rows = _rows(chunks, query_start.tolist())
    return Batch(
        input_ids=np.array(input_ids, dtype=np.int32),
        positions=positions,
        query_start=query_start,
        seq_lens=ends,
        block_tables=np.take(tables[:, :, : -(-int(ends.max()) // block_size)], slots, axis=1),
        slot_mapping=np.ascontiguousarray(blocks * np.int32(block_size) + positions % block_size),
        block_copies=block_copies,
        slots=slots,
        carry=np.zeros(len(chunks), dtype=np.bool_),
        sample_rows=np.array(sample_rows, dtype=np.int32),
        targets=np.array(targets, dtype=np.int32),
        num_logprobs=np.array(counts, dtype=np.int32),
        sampling=sampling_arrays(rows),
    )


def _rows(chunks: ListLike[Chunk], query_start: list[int]) -> tuple[list[int], list[int], list[int], list[SampleRow]]:
    """Token index, target, number of logprobs and sampling of every row."""
    tokens: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    rows: list[SampleRow] = []
    for chunk, first in zip(chunks, query_start, strict=False):
        sequence = chunk.sequence
        for position in chunk.scored:
            tokens.append(first + position - 1 - chunk.start)
            targets.append(sequence.token_ids[position])
            counts.append(sequence.num_prompt_logprobs)
            rows.append(SampleRow(sequence.sampling, 0, position))
        last = first + chunk.end - chunk.start - 1
        for index in chunk.samples:
            history = None if sequence.history is None else sequence.history.seen_along(chunk.draft)
            for i in range(len(chunk.draft) + 1):
                tokens.append(last + i)
                targets.append(-1)
                counts.append(sequence.num_logprobs)
                seen = None if history is None else history[i]
                rows.append(SampleRow(sequence.sampling, index, chunk.end + i, seen, sequence.bias(i)))
    return tokens, targets, counts, rows
