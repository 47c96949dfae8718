"""A drafter that knows the answers of the fake backend by definition, and is wrong where told to be."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field
from typing import ClassVar

from support.fake_backend import VOCAB, solo
from tuili.engine.sequence import Sequence


@dataclass
class OracleDrafter:
    """Drafts up to `max_draft` tokens; token i of an answer is wrong when i is a multiple of `wrong_every`."""

    max_draft: int = 6
    wrong_every: int = 4
    max_model_len: int = 128
    probe_gain: ClassVar[float] = 1.3
    _answers: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def chances(self, sequence: Sequence, limit: int) -> ListLike[float]:
        assert 0 <= limit <= self.max_draft
        return [1.0] * len(self._next(sequence, limit)) if limit else []

    def draft(self, wanted: ListLike[tuple[Sequence, int]]) -> list[ListLike[int]]:
        return [self._next(sequence, width) if width else [] for sequence, width in wanted]

    def seconds(self, num_sequences: int) -> float:
        return 0.0

    def release(self, sequence: Sequence) -> None:
        assert sequence.slot >= 0

    def forget(self) -> None:
        self._answers.clear()

    def check(self, running: ListLike[Sequence]) -> None:
        assert all(sequence.slot >= 0 for sequence in running)

    def _next(self, sequence: Sequence, limit: int) -> list[int]:
        request, index = sequence.request, sequence.indexes[0]
        if (request.request_id, index) not in self._answers:
            self._answers[request.request_id, index] = solo(request, index, self.max_model_len)[0]
        first = sequence.num_output_tokens
        answer = self._answers[request.request_id, index]
        assert sequence.token_ids[sequence.num_prompt_tokens :] == answer[:first]
        return [self._drafted(i, token_id) for i, token_id in enumerate(answer) if i >= first][:limit]

    def _drafted(self, i: int, token_id: int) -> int:
        return (token_id + 1) % VOCAB if i % self.wrong_every == 0 else token_id
