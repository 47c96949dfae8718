"""How the attention of decoding sequences is cut: chunks that lie in the same blocks are computed together."""

from __future__ import annotations

import numpy as np

from tuili.backends.cpu import _native

K = _native.kernels  # type: ignore[attr-defined]


def parts(positions: list[int], tables: list[list[int]], *, window: int = 0, num_workers: int = 1) -> list[object]:
    """Blocks of 128 tokens: two make a chunk."""
    return sorted(
        (chunk, sorted(sequences))
        for chunk, sequences in K.attention_parts(
            np.array(positions, np.int32), np.array(tables, np.int32), 128, window, num_workers
        )
    )


def test_without_common_blocks_a_sequence_is_one_part() -> None:
    assert parts([600, 300], [[1, 2, 3, 4, 5], [6, 7, 8, -1, -1]]) == [(-1, [0]), (-1, [1])]


def test_common_blocks_are_shared_by_whole_chunks() -> None:
    tables = [[1, 2, 3, 4, 5], [1, 2, 3, 7, 8], [1, 9, 10, 11, 12]]
    assert parts([600, 600, 600], tables) == [(-1, [2]), (0, [0, 1]), (1, [0]), (1, [1]), (2, [0]), (2, [1])]


def test_a_chunk_that_is_still_written_is_not_shared() -> None:
    tables = [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert parts([511, 511], tables) == [(0, [0, 1]), (1, [0]), (1, [1])]
    assert parts([512, 511], [[*t, 5 + i] for i, t in enumerate(tables)])[0] == (0, [0, 1])
    assert parts([255, 255], tables) == [(-1, [0]), (-1, [1])]


def test_a_tree_of_prefixes() -> None:
    tables = [[1, 2, 3, 4, 5], [1, 2, 6, 7, 8], [1, 2, 3, 4, 9], [1, 2, 6, 7, 10]]
    found = parts([512] * 4, tables)
    assert found[:3] == [(0, [0, 1, 2, 3]), (1, [0, 2]), (1, [1, 3])]
    assert found[3:] == [(2, [s]) for s in range(4)]


def test_many_rows_are_cut() -> None:
    tables = [[1, 2, 3 + s] for s in range(40)]
    found = parts([256] * 40, tables)
    assert sorted(len(sequences) for chunk, sequences in found if chunk == 0) == [8, 16, 16]


def test_windows_share_nothing() -> None:
    assert parts([600, 600], [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]], window=512) == [(-1, [0]), (-1, [1])]


def test_few_long_sequences_are_cut_by_chunk() -> None:
    assert parts([600], [[1, 2, 3, 4, 5]], num_workers=2) == [(0, [0]), (1, [0]), (2, [0])]
    assert parts([600], [[1, 2, 3, 4, 5]], window=256, num_workers=2) == [(1, [0]), (2, [0])]


def test_one_long_sequence_among_many_short_ones_is_cut_by_chunk() -> None:
    """Whole, it would keep one worker busy long after the others are done."""
    tables = [list(range(1, 11))] + [[20 + 10 * s + i if i < 2 else -1 for i in range(10)] for s in range(8)]
    positions = [1279] + [255] * 8
    assert parts(positions, tables, num_workers=2) == [(-1, [s]) for s in range(1, 9)] + [(c, [0]) for c in range(5)]
    assert parts(positions, tables, num_workers=1) == [(-1, [s]) for s in range(9)]
