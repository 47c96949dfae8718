"""The index finds what a look at every piece finds."""

from __future__ import annotations

import random

from tuili.text.piece_index import PieceIndex


def test_it_finds_what_a_look_at_every_piece_finds() -> None:
    draw = random.Random(1)
    pieces = [bytes(draw.choices(b"ab\xff\x00", k=draw.randrange(6))) for _ in range(400)]
    index = PieceIndex(pieces)
    for _ in range(500):
        part = bytes(draw.choices(b"ab\xff\x00", k=draw.randrange(1, 5)))
        assert list(index.containing(part)) == [n for n, piece in enumerate(pieces) if part in piece]
        assert sorted(index.ending(part)) == [n for n, piece in enumerate(pieces) if piece.endswith(part)]
