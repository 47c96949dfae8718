"""A model in several parts, one for each thread: what ranks compute, without processes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO

import torch

from tuili.backend import BackendOptions, Batch, CacheGroup, Choices, Float32, SamplingArrays, StepHandle, UInt32
from tuili.backends.torch.backend import TorchBackend, load
from tuili.backends.torch.parallel.batch_frames import batch_of, frame_of
from tuili.backends.torch.parallel.cutting import CutWeights, stored_group_size
from tuili.backends.torch.parallel.division import divide, own_spec
from tuili.backends.torch.parallel.frames import read_frame
from tuili.backends.torch.shard import Shard
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor

WAIT_S = 60.0


class Meeting:
    """Where threads hand each other tensors."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=WAIT_S)
        self.places: list[torch.Tensor] = [torch.empty(0)] * size


class ThreadRanks:
    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.rank = rank
        self._meeting = meeting

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.gather(x)
        total = first.float()
        for other in others:
            total = total + other.float()
        return total.to(x.dtype)

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        meeting = self._meeting
        meeting.places[self.rank] = x
        meeting.barrier.wait()
        parts = [part.clone() for part in meeting.places]
        assert len({part.shape for part in parts}) == 1, "ranks are not at the same place"
        meeting.barrier.wait()
        return parts

    def share(self, x: torch.Tensor, source: int) -> torch.Tensor:
        return self.gather(x)[source]

    def abort(self) -> None:
        self._meeting.barrier.abort()


class InThreads:
    """The Backend of all parts."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions, size: int) -> None:
        self._meeting = Meeting(size)
        self._pool = ThreadPoolExecutor(size)
        self.parts: list[TorchBackend] = []
        for rank in range(size):
            division = divide(spec, rank, size, partial(stored_group_size, weights))
            shard = Shard(ranks=ThreadRanks(self._meeting, rank), layers=division.layers, vocab=division.vocab)
            self.parts.append(load(own_spec(spec, division), CutWeights(weights, spec, division), options, shard))

    @property
    def vocab_size(self) -> int:
        return self.parts[0].vocab_size

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        first, *_ = [part.cache_groups(block_size) for part in self.parts]
        return first

    def allocate_cache(self, num_blocks: list[int]) -> None:
        for part in self.parts:
            part.allocate_cache(num_blocks)

    def execute(self, batch: Batch) -> StepHandle:
        told = frame_of(batch).encoded()
        steps = [self._pool.submit(self._step, self.parts[0], batch)]
        for part in self.parts[1:]:
            frame = read_frame(BytesIO(told))
            assert frame is not None
            steps.append(self._pool.submit(self._step, part, batch_of(frame)))
        first, *_ = [step.result(WAIT_S) for step in steps]
        return first

    def _step(self, part: TorchBackend, batch: Batch) -> StepHandle:
        try:
            return part.execute(batch)
        except BaseException:
            self._meeting.barrier.abort()
            raise

    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        return self.parts[0].sample(logits, sampling, allow_mask)

    def close(self) -> None:
        self._pool.shutdown()
