"""A model that several processes compute together, as one backend: the first rank is in this process."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListLike
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch

from tuili.backend import (
    BackendOptions,
    Batch,
    CacheGroup,
    Choices,
    DeviceRoom,
    Float32,
    Int32,
    SamplingArrays,
    StepHandle,
    StepResult,
    UInt32,
    refuse_unread,
)
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.cache import is_out_of_memory
from tuili.backends.torch.divided import StepDivider
from tuili.backends.torch.parallel.batch_frames import frame_of
from tuili.backends.torch.parallel.frames import Frame
from tuili.backends.torch.parallel.group import NO_MEMORY, WorkerGroup
from tuili.backends.torch.parallel.loading import Place, group_size, layer_ends, load_rank, size_refusal
from tuili.backends.torch_sizes.division import check_divisible
from tuili.backends.torch_sizes.footprint import largest_groups
from tuili.backends.torch_sizes.stages import check_stages
from tuili.config import MAX_PARALLEL_SIZE, EngineConfig
from tuili.errors import DeviceFailureError, InsufficientMemoryError
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor

Found = TypeVar("Found")


def load_group(spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions) -> ParallelBackend:
    """Starts the other ranks and loads a part in each. The backend's close() ends them.

    Raises what load raises, and InvalidRequestError for a model or devices that cannot be shared by so many.
    """
    size, width = group_size(options), options.tensor_parallel_size
    if options.source is None:
        raise size_refusal(options, "1 for weights that are in no file")
    if options.gpu_layers is not None or options.cpu_offload_bytes:
        raise size_refusal(options, "1 for a model with layers on the CPU (gpu_layers, cpu_offload_gb)")
    if size > MAX_PARALLEL_SIZE:
        raise size_refusal(options, f"at most {MAX_PARALLEL_SIZE}")
    if width > 1:
        check_divisible(spec, width)
    check_stages(spec, options.pipeline_parallel_size)
    ends = layer_ends(spec, weights, options)
    folder = Path(tempfile.mkdtemp(prefix="tuili-ranks-"))  # nobody else's
    group = WorkerGroup(size)
    try:
        group.replies()  # they are there
        told = {"source": asdict(options.source), "options": asdict(replace(options, source=None))}
        for worker in group.workers:
            place = {"folder": str(folder), "rank": worker.rank, "width": width, "ends": ends}
            worker.send(Frame("open", told | place).encoded())
        group.replies()  # and have what they need: nobody waits in vain for them to join
        group.tell(Frame("join"))
        first = load_rank(spec, weights, options, Place(folder, 0, width, ends), group.check)
        return ParallelBackend(first, group, group.replies(), options.pipeline_parallel_size)
    except BaseException:
        group.close(0)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sized(groups: ListLike[CacheGroup], sizes: ListLike[int]) -> tuple[CacheGroup, ...]:
    return tuple(replace(group, block_bytes=size) for group, size in zip(groups, sizes, strict=True))


class ParallelBackend:
    """The Backend of a group. A rank that is lost breaks it for good: whoever runs the engine loads it anew.

    Stages work at the same time only if the last one, which is here, lets its caller hand over the next step. Where its
    device computes within the call, a thread has all that is asked of it, in order.
    """

    def __init__(
        self, first: TorchBackend, group: WorkerGroup, others: ListLike[Mapping[str, int]], num_stages: int = 1
    ) -> None:
        """others: what the other ranks told of themselves, once loaded."""
        self._first = first
        self.num_stages = num_stages
        self._thread: ThreadPoolExecutor | None = None
        if num_stages > 1 and not first.is_asynchronous:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="tuili-first-rank")
        self._group = group
        self._others = others
        self._failure: str | None = None
        group.on_lost = first.abort
        self._reserved = 0  # bytes that every rank has for a step
        self._has_graph_room = True  # or there is none but what graphs have taken
        self._steps = StepDivider(self._run, self._copy_blocks, self._release, "one of the ranks' devices")

    @property
    def vocab_size(self) -> int:
        return self._first.vocab_size

    @property
    def is_asynchronous(self) -> bool:
        """As TorchBackend's; stages always are."""
        return self._first.is_asynchronous or self._thread is not None

    @property
    def batched_tokens(self) -> int | None:
        """As TorchBackend's."""
        return self._first.batched_tokens

    @property
    def num_threads(self) -> int:
        """Of one rank."""
        return self._first.num_threads

    @property
    def process_ids(self) -> list[int]:
        """Of the other ranks."""
        return [worker.process_id for worker in self._group.workers]

    @property
    def weight_bytes(self) -> int:
        """Of all ranks together."""
        return self._first.weight_bytes + sum(other["weight_bytes"] for other in self._others)

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        """What a block of each takes of the rank where it takes most."""
        self._tell(Frame("groups", {"block_size": block_size}))
        try:
            groups = self._own(lambda: self._first.cache_groups(block_size))
        finally:
            others = [reply["block_bytes"] for reply in self._group.replies()]
        return largest_groups([groups, *(_sized(groups, sizes) for sizes in others)])

    def allocate_cache(self, num_blocks: ListLike[int]) -> None:
        """As many on every rank."""
        self._reserved = 0  # it may take what was free
        self._tell(Frame("allocate", {"num_blocks": list(num_blocks)}))
        self._on_all(lambda: self._first.allocate_cache(num_blocks))

    def measure_room(self, config: EngineConfig, utilization: float) -> DeviceRoom | None:
        """Of the device that has least for a cache. Raises InsufficientMemoryError; the group is of no use then."""
        limits = asdict(replace(config, speculative=None))
        self._tell(Frame("measure", {"config": limits, "utilization": utilization}))
        try:
            own = self._own(lambda: self._first.measure_room(config, utilization))
            others = [reply["room"] for reply in self._group.replies()]
        except BaseException as error:
            told = self._group.last_words() if isinstance(error, RuntimeError) else None
            self._group.close(0)  # where one finds no memory, the others wait for it
            if told is not None:
                raise told from None
            raise
        rooms = [own, *(None if room is None else DeviceRoom(**room) for room in others)]
        return min((room for room in rooms if room is not None), key=lambda room: room.cache_bytes, default=None)

    def allocate_swap(self, num_blocks: ListLike[int]) -> float:
        """As TorchBackend's, on every rank; of the slowest."""
        self._tell(Frame("allocate_swap", {"num_blocks": list(num_blocks)}))
        try:
            own = self._own(lambda: self._first.allocate_swap(num_blocks))
        finally:
            others = self._group.replies()
        return max(own, *(float(reply["seconds"]) for reply in others))

    def swap_out(self, copies: Int32) -> None:
        """As TorchBackend's, on every rank."""
        self._tell(Frame("swap_out", {}, {"copies": copies}))
        self._own(lambda: self._first.swap_out(copies))

    def swap_in(self, copies: Int32) -> None:
        """As TorchBackend's, on every rank."""
        self._tell(Frame("swap_in", {}, {"copies": copies}))
        self._own(lambda: self._first.swap_in(copies))

    def execute(self, batch: Batch) -> StepHandle:
        """As TorchBackend.execute, in parts where a rank has no memory for the whole.

        Raises DeviceFailureError where a rank is lost or a step failed halfway.
        """
        refuse_unread(batch, "torch")
        return self._steps.execute(batch)

    def _run(self, batch: Batch) -> StepHandle:
        self._reserve(self._first.step_bytes(batch))
        self._tell(frame_of(batch))
        if self._thread is None:
            return RunningGroupStep(self, self._compute(batch))
        kept = copy.deepcopy(batch)  # whose arrays may be rewritten by then
        return RunningGroupStep(self, LateStep(self._thread.submit(self._compute, kept)))

    def _compute(self, batch: Batch) -> StepHandle:
        """The first rank's part of a step that the others have been told."""
        num_captures = self._num_captures
        try:
            step = self._first.execute(batch)
        except Exception as error:
            raise self.broken(error) from error.with_traceback(None)
        if self._num_captures != num_captures:
            self._reserved = 0  # one gives back what torch keeps, and takes some for good
        return step

    def _own(self, work: Callable[[], Found]) -> Found:
        """What is asked of the first rank, behind its part of all steps so far."""
        return work() if self._thread is None else self._thread.submit(work).result()

    @property
    def _num_graphs(self) -> int:
        return 0 if self._first.graphs is None else len(self._first.graphs)

    @property
    def _num_captures(self) -> int:
        return 0 if self._first.graphs is None else self._first.graphs.num_captures

    def _reserve(self, step_bytes: int) -> None:
        """On every rank, or on none to count on: what one of them lacks within a step would leave the others waiting.

        Room for graphs comes along, unless there are some and they may have taken it. Only a step larger than all
        before it is asked about. Raises torch.OutOfMemoryError.
        """
        with_graphs = self._has_graph_room or not self._num_graphs
        num_bytes = step_bytes + (self._first.graph_bytes if with_graphs else 0)
        if num_bytes <= self._reserved:
            return
        self._tell(Frame("reserve", {"num_bytes": num_bytes}))
        try:
            self._on_all(lambda: self._first.reserve(num_bytes))
            self._reserved = num_bytes
        except InsufficientMemoryError as error:
            if not (with_graphs and self._num_graphs):
                raise torch.OutOfMemoryError(str(error)) from None
            self._has_graph_room = False
            self._reserve(step_bytes)

    def _copy_blocks(self, copies: Int32) -> None:
        self._tell(Frame("copy_blocks", {}, {"copies": copies}))
        self._on_all(lambda: self._first.copy_blocks(copies))

    def _release(self) -> None:
        self._tell(Frame("release"))
        self._own(self._first.release)
        self._reserved = 0

    def _on_all(self, work: Callable[[], None]) -> None:
        """The first rank's part of what the others have been told and answer."""
        try:
            self._own(work)
        finally:
            self._group.replies()

    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        return self._own(lambda: self._first.sample(logits, sampling, allow_mask))

    def close(self) -> None:
        self._group.close()  # once they have done what they were told
        if self._thread is not None:
            self._thread.shutdown()
        self._first.close()

    def check(self) -> None:
        """Raises DeviceFailureError once a rank is lost: what its operations left behind counts for nothing."""
        if (failure := self._failure or self._group.failure) is not None:
            raise DeviceFailureError(failure)

    def broken(self, error: Exception) -> DeviceFailureError:
        """What a step failed with. The ranks are no longer at the same place: none of them goes on."""
        if self._failure is None:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                self._failure = f"rank 0 {NO_MEMORY} ({reason})"
            else:
                self._failure = self._group.wait_for_failure() or f"a step failed on rank 0: {reason}"
        return DeviceFailureError(self._failure)

    def _tell(self, frame: Frame) -> None:
        self.check()
        self._group.tell(frame)


class RunningGroupStep:
    """The handle of a step under way."""

    def __init__(self, backend: ParallelBackend, step: StepHandle) -> None:
        self._backend = backend
        self._step = step

    def result(self) -> StepResult:
        """Waits for the first rank's device, which has waited for the others'."""
        try:
            found = self._step.result()
        except Exception as error:
            raise self._backend.broken(error) from error.with_traceback(None)
        self._backend.check()
        return found


class LateStep:
    """The handle of a step that a thread begins once it has done those before."""

    def __init__(self, step: Future[StepHandle]) -> None:
        self._step = step

    def result(self) -> StepResult:
        """Raises what the step raised."""
        return self._step.result().result()
