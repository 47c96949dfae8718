"""A draft model that agrees with the fake backend but for every few positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from support.fake_backend import VOCAB, FakeBackend
from tuili.backend import Batch, StepResult


@dataclass
class Misguided(FakeBackend):
    """Chooses as the fake backend, only wrongly at positions that are multiples of `wrong_every`."""

    wrong_every: int = 1000
    is_frugal: bool = False  # a draft's last tokens still read what its first ones do

    def _answer(self, batch: Batch, chains: np.ndarray) -> StepResult:
        result = super()._answer(batch, chains)
        is_wrong = batch.sampling.position % self.wrong_every == 0
        result.token_ids[is_wrong] = (result.token_ids[is_wrong] + 1) % VOCAB
        return result
