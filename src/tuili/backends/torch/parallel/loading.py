"""The part of a model that one rank loads, on the device that is its own. Every rank runs this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from tuili.backend import BackendOptions
from tuili.backends.torch.backend import TorchBackend, load
from tuili.backends.torch.devices import choose_device
from tuili.backends.torch.parallel.collectives import join
from tuili.backends.torch.parallel.cutting import CutWeights, stored_group_size
from tuili.backends.torch.parallel.division import divide, own_spec
from tuili.backends.torch.shard import Shard
from tuili.checks import refusal
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Which rank of how many, and the folder by whose files they find each other."""

    folder: Path
    rank: int
    size: int


def devices_of(options: BackendOptions) -> list[torch.device]:
    """One for each rank: GPUs side by side from the one that was asked for, or the CPU for all.

    Raises InvalidRequestError where there are fewer.
    """
    size, first = options.tensor_parallel_size, choose_device(options.device)
    if first.type == "cpu":
        return [first] * size
    if first.type != "cuda":
        raise refusal("tensor_parallel_size", size, f"1 on {first.type}")
    start, count = first.index or 0, torch.cuda.device_count()
    if start + size > count:
        raise refusal("tensor_parallel_size", size, f"at most {count - start}, as torch sees {count} GPUs")
    return [torch.device("cuda", start + rank) for rank in range(size)]


def load_rank(spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions, place: Place) -> TorchBackend:
    """Meets the other ranks, then reads the own part of `weights`, which are the whole model's.

    options are the group's: the device is the first rank's, the threads are all ranks'. Raises what loading raises.
    """
    device = devices_of(options)[place.rank]
    division = divide(spec, place.rank, place.size, partial(stored_group_size, weights))
    ranks = join(place.folder, "tensor", place.rank, place.size, device, is_ordered=options.deterministic)
    shard = Shard(ranks=ranks, layers=division.layers, vocab=division.vocab)
    num_threads = threads_of(options, device, place)
    own = replace(options, device=str(device), num_threads=num_threads)
    return load(own_spec(spec, division), CutWeights(weights, spec, division), own, shard)


def threads_of(options: BackendOptions, device: torch.device, place: Place) -> int:
    """On the CPU ranks share the threads that were given; if none were, the first leaves its process's as they are."""
    if options.num_threads:
        return max(1, options.num_threads // place.size) if device.type == "cpu" else options.num_threads
    return 0 if place.rank == 0 or device.type != "cpu" else max(1, torch.get_num_threads() // place.size)
