"""A model in several parts, one for each thread: what ranks compute, without processes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import permutations
from pathlib import Path
from queue import SimpleQueue

import torch

from tuili.backend import BackendOptions, Batch, CacheGroup, Choices, Float32, SamplingArrays, StepHandle, UInt32
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.parallel.batch_frames import batch_of, frame_of
from tuili.backends.torch.parallel.frames import read_frame
from tuili.backends.torch.parallel.loading import Place, load_part
from tuili.backends.torch.shard import Ranks
from tuili.backends.torch_sizes.footprint import largest_groups
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor

WAIT_S = 60.0


class Meeting:
    """Where threads hand each other tensors."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=WAIT_S)
        self.places: list[torch.Tensor] = [torch.empty(0)] * size
        self.ways: dict[tuple[int, int], SimpleQueue[torch.Tensor | None]] = {
            way: SimpleQueue() for way in permutations(range(size), 2)
        }

    def abort(self) -> None:
        self.barrier.abort()
        for way in self.ways.values():
            way.put(None)


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

    def send(self, x: torch.Tensor, target: int) -> None:
        self._meeting.ways[self.rank, target].put(x.clone())

    def receive(self, x: torch.Tensor, source: int) -> torch.Tensor:
        found = self._meeting.ways[source, self.rank].get(timeout=WAIT_S)
        assert found is not None, "another rank failed"
        assert (found.shape, found.dtype) == (x.shape, x.dtype), "ranks are not at the same place"
        return x.copy_(found)

    def abort(self) -> None:
        self._meeting.abort()


class InThreads:
    """The Backend of all parts."""

    is_asynchronous = False
    num_stages = 1

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        options: BackendOptions,
        width: int,
        ends: tuple[int, ...] | None = None,
    ) -> None:
        """`width` threads share each layer; ends: where the layers of each stage end."""
        place = Place(Path(), 0, width, ends or (spec.num_layers,))
        self._meetings: dict[str, Meeting] = {}
        self._pool = ThreadPoolExecutor(place.size)
        places = [replace(place, rank=rank) for rank in range(place.size)]
        self.parts = [load_part(spec, weights, options, place, self._meet) for place in places]

    def _meet(self, name: str, rank: int, size: int) -> Ranks:
        return ThreadRanks(self._meetings.setdefault(name, Meeting(size)), rank)

    @property
    def vocab_size(self) -> int:
        return self.parts[0].vocab_size

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        return largest_groups([part.cache_groups(block_size) for part in self.parts])

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
            for meeting in self._meetings.values():
                meeting.abort()
            raise

    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        return self.parts[0].sample(logits, sampling, allow_mask)

    def close(self) -> None:
        self._pool.shutdown()
