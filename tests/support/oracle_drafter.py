"""A drafter that knows the answers of the fake backend by definition, and is wrong where told to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from support.fake_backend import VOCAB, solo
from tuili.engine.sequence import Sequence
from tuili.engine.speculative_width import Draft


@dataclass
class OracleDrafter:
    """Drafts up to `max_draft` tokens; token i of an answer is wrong when i is a multiple of `wrong_every`."""

    max_draft: int = 6
    wrong_every: int = 4
    max_model_len: int = 128
    _answers: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def propose(self, sequence: Sequence, limit: int) -> Draft:
        assert limit <= self.max_draft
        request, index = sequence.request, sequence.indexes[0]
        if (request.request_id, index) not in self._answers:
            self._answers[request.request_id, index] = solo(request, index, self.max_model_len)[0]
        first = sequence.num_output_tokens
        answer = self._answers[request.request_id, index]
        assert sequence.token_ids[sequence.num_prompt_tokens :] == answer[:first]
        drafted = [self._drafted(i, token_id) for i, token_id in enumerate(answer) if i >= first][: max(limit, 0)]
        return Draft(drafted, [1.0] * len(drafted))

    def _drafted(self, i: int, token_id: int) -> int:
        return (token_id + 1) % VOCAB if i % self.wrong_every == 0 else token_id
