"""The part of a model that one rank loads, on the device that is its own. Every rank runs this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from tuili.backend import BackendOptions
from tuili.backends.torch.backend import TorchBackend, load
from tuili.backends.torch.devices import choose_device, choose_dtype, current
from tuili.backends.torch.parallel.collectives import join
from tuili.backends.torch.parallel.cutting import CutWeights, stored_format, stored_group_size
from tuili.backends.torch.shard import Ranks, Shard, Stage
from tuili.backends.torch_sizes.division import divide, own_spec
from tuili.backends.torch_sizes.stages import stage_ends, stage_of
from tuili.checks import refusal
from tuili.errors import InvalidRequestError
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor

STAGES = "stages"  # how the names of groups begin that pass on what they compute


@dataclass(frozen=True, slots=True)
class Place:
    """Which rank, how many share a layer, where each stage's layers end, and the folder by whose files ranks meet.

    The first ranks are the last stage, which chooses tokens; those of the first stage come next.
    """

    folder: Path
    rank: int
    width: int
    ends: tuple[int, ...]

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return self.width * len(self.ends)

    @property
    def stage(self) -> int:
        return stage_of(self.rank, self.width, len(self.ends))

    @property
    def layers(self) -> range:
        """Of its stage."""
        return range((0, *self.ends)[self.stage], self.ends[self.stage])


def group_size(options: BackendOptions) -> int:
    """Ranks of the group."""
    return options.tensor_parallel_size * options.pipeline_parallel_size


def size_refusal(options: BackendOptions, allowed: str) -> InvalidRequestError:
    """For a group that cannot be had, by the names of what asks for it."""
    names = [name for name in ("tensor_parallel_size", "pipeline_parallel_size") if getattr(options, name) > 1]
    return refusal(" times ".join(names), group_size(options), allowed)


def devices_of(options: BackendOptions) -> list[torch.device]:
    """One for each rank: GPUs side by side from the one that was asked for, or the CPU for all.

    Raises InvalidRequestError where there are fewer.
    """
    size, first = group_size(options), choose_device(options.device)
    if first.type == "cpu":
        return [first] * size
    if first.type != "cuda":
        raise size_refusal(options, f"1 on {first.type}")
    start, count = first.index or 0, torch.cuda.device_count()
    if start + size > count:
        raise size_refusal(options, f"at most {count - start}, as torch sees {count} GPUs")
    return [torch.device("cuda", start + rank) for rank in range(size)]


def layer_ends(spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions) -> tuple[int, ...]:
    """Where the layers of each stage end. Raises InvalidRequestError for devices and stages that cannot be."""
    device, format_of = devices_of(options)[0], partial(stored_format, weights)
    dtype = choose_dtype(options.dtype, device, format_of("layers.0.o_proj.weight"))
    keeps_packed = device.type != "cpu"
    return stage_ends(spec, format_of, options.pipeline_parallel_size, dtype.itemsize, keeps_packed=keeps_packed)


def load_rank(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    options: BackendOptions,
    place: Place,
    check: Callable[[], None] = lambda: None,
) -> TorchBackend:
    """Meets the other ranks, then reads the own part of `weights`, which are the whole model's.

    options are the group's: the device is the first rank's, the threads are all ranks'. check() is called while others
    are waited for. Raises what loading and check raise.
    """
    device = devices_of(options)[place.rank]
    own = replace(options, device=str(device), num_threads=threads_of(options, device, place))

    def meet(name: str, rank: int, size: int) -> Ranks:
        ways = {"is_ordered": options.deterministic, "is_ring": name.startswith(STAGES)}
        with current(device):
            return join(place.folder, name, rank, size, device, check=check, **ways)

    return load_part(spec, weights, own, place, meet)


def load_part(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    options: BackendOptions,
    place: Place,
    meet: Callable[[str, int, int], Ranks],
) -> TorchBackend:
    """options are this rank's. meet(name, rank, size) gives the group of that name, which has `size` ranks."""
    shard = stage = None
    column = place.rank % place.width
    if place.width > 1:
        division = divide(spec, column, place.width, partial(stored_group_size, weights))
        weights, spec = CutWeights(weights, spec, division), own_spec(spec, division)
        ranks = meet(f"tensor-{place.stage}", column, place.width)
        shard = Shard(ranks=ranks, layers=division.layers, vocab=division.vocab)
    if len(place.ends) > 1:
        ranks = meet(f"{STAGES}-{column}", place.stage, len(place.ends))
        stage = Stage(ranks=ranks, layers=place.layers, size=len(place.ends))
    return load(spec, weights, options, shard, stage)


def threads_of(options: BackendOptions, device: torch.device, place: Place) -> int:
    """On the CPU ranks share the threads that were given; if none were, the first leaves its process's as they are."""
    if options.num_threads:
        return max(1, options.num_threads // place.size) if device.type == "cpu" else options.num_threads
    return 0 if place.rank == 0 or device.type != "cpu" else max(1, torch.get_num_threads() // place.size)
