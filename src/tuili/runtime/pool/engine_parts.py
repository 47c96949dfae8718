"""What the processes of a model's engines take, each of its own device: weights, room for steps, libraries, cache.

Asked of the backend that will run the model. Arithmetic over descriptions; imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuili.backend import CacheGroup
from tuili.backends.torch_sizes.footprint import SUPPORTED, largest_groups
from tuili.config import KvCacheDtype
from tuili.errors import UnsupportedModelError
from tuili.models.features import unsupported_features
from tuili.models.spec import ModelSpec
from tuili.runtime.loading.load_options import LoadOptions, cpu_cache_dtype
from tuili.runtime.loading.loading import DEFAULT_BATCHED_TOKENS
from tuili.runtime.pool.memory_plan import HOST

if TYPE_CHECKING:
    from tuili.runtime.devices.torch_ranks import Rank
    from tuili.runtime.plan.outline import Outline

ENGINE_BYTES = 60 << 20  # interpreter and libraries of an engine's process
TOKENIZER_BYTES = 530  # for a vocabulary entry, of the process that speaks HTTP

Groups = tuple[CacheGroup, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePart:
    """Bytes that one process takes of a device, whatever cache it gets; cache_ratio: of a cache's bytes as its engine
    counts them, the part that is there.
    """

    device: str
    weight_bytes: int
    workspace_bytes: int
    other_bytes: int
    cache_ratio: float

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.workspace_bytes + self.other_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSizes:
    """Of all engines of a model together, but for groups, by which each counts its own cache."""

    groups: Groups
    parts: tuple[EnginePart, ...]
    num_tokens: int  # of a step
    kv_cache_dtype: KvCacheDtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpus:
    """Those whose memory models are counted in: names has one for each process, replica by replica.

    granted_bytes: what models may take of each, were there no others. cache_share: of what is free.
    """

    names: tuple[str, ...]
    granted_bytes: int
    cache_share: float


def cpu_sizes(outlines: Sequence[Outline], options: LoadOptions, length: int, num_replicas: int) -> EngineSizes:
    """With the cpu backend. The first outline is the model's, another that of a draft model."""
    from tuili.backends.cpu import footprint
    from tuili.machine import thread_limits

    dtype, spec = cpu_cache_dtype(options.kv_cache_dtype), outlines[0].spec
    num_tokens = _num_tokens(options, DEFAULT_BATCHED_TOKENS)
    part = EnginePart(
        device=HOST,
        weight_bytes=sum(footprint.weight_bytes(outline.stored) for outline in outlines),
        workspace_bytes=footprint.workspace_bytes(
            spec,
            num_tokens=num_tokens,
            num_rows=options.max_num_seqs,
            num_positions=length,
            num_threads=thread_limits(options.num_threads).num_threads,
        ),
        other_bytes=_process_bytes(spec),
        cache_ratio=1.0,
    )
    groups = [g for outline in outlines for g in footprint.cache_groups(outline.spec, dtype, options.block_size)]
    return EngineSizes(groups=tuple(groups), parts=(part,) * num_replicas, num_tokens=num_tokens, kv_cache_dtype=dtype)


def torch_sizes(
    outlines: Sequence[Outline], options: LoadOptions, length: int, gpus: Gpus | None, num_replicas: int
) -> EngineSizes:
    """With the torch backend, on GPUs or, where nobody can count these, as if all were in host memory.

    A draft model is on the first process's device alone. Raises UnsupportedModelError, InvalidRequestError.
    """
    from tuili.runtime.devices.torch_memory import GPU_BATCHED_TOKENS

    for outline in outlines:
        if missing := unsupported_features(outline.spec, SUPPORTED):
            raise UnsupportedModelError(
                f"{outline.spec.family}: the torch backend does not implement {', '.join(missing)}"
            )
    num_tokens = _num_tokens(options, DEFAULT_BATCHED_TOKENS if gpus is None else GPU_BATCHED_TOKENS)
    engine = _TorchEngine(outlines, options, length, num_tokens, gpus)
    return EngineSizes(
        groups=engine.groups,
        parts=tuple(part for replica in range(num_replicas) for part in engine.parts(replica)),
        num_tokens=num_tokens,
        kv_cache_dtype=engine.cache_dtype,
    )


class _TorchEngine:
    """One engine: the ranks of its model, and its draft model."""

    def __init__(
        self, outlines: Sequence[Outline], options: LoadOptions, length: int, num_tokens: int, gpus: Gpus | None
    ) -> None:
        from tuili.runtime.devices.torch_memory import item_bytes
        from tuili.runtime.devices.torch_ranks import Parts, deal_out

        self._options, self._length, self._num_tokens, self._gpus = options, length, num_tokens, gpus
        self._outlines = outlines
        self.cache_dtype: KvCacheDtype = options.kv_cache_dtype  # type: ignore[assignment]  # LoadOptions checks
        item, on_gpu = item_bytes(options.dtype, options.device), gpus is not None
        parts = Parts(tensor=options.tensor_parallel_size, pipeline=options.pipeline_parallel_size)
        dealt = [
            deal_out(outline.spec, outline.stored, parts if i == 0 else Parts(), item, keeps_packed=on_gpu)
            for i, outline in enumerate(outlines)
        ]
        model, *drafts = [[self._placed(rank) for rank in ranks] for ranks in dealt]
        self._ranks, self._drafts = model, [draft[0] for draft in drafts]
        self._counted = [largest_groups([self._groups(rank) for rank in ranks]) for ranks in (model, *drafts)]
        self.groups: Groups = tuple(group for groups in self._counted for group in groups)

    def _placed(self, rank: Rank) -> Rank:
        options, gpus = self._options, self._gpus
        if gpus is None or options.num_ranks > 1:
            return rank
        return rank.placed(gpus.granted_bytes, options.gpu_layers, int(options.cpu_offload_gb * 2**30), self._length)

    def _groups(self, rank: Rank) -> Groups:
        """As its process counts them: blocks on the device, or on the host where a group is all there."""
        own = rank.cache_groups(self.cache_dtype, self._options.block_size)
        host = rank.host_cache_groups(self.cache_dtype, self._options.block_size)
        return tuple(found if found.block_bytes else other for found, other in zip(own, host, strict=True))

    def parts(self, replica: int) -> list[EnginePart]:
        """Of each rank's device, then of the host."""
        from tuili.runtime.devices.torch_memory import GPU_CONTEXT_BYTES

        gpus, count = self._gpus, len(self._ranks)
        found = []
        for i, rank in enumerate(self._ranks):
            there = [rank, *(self._drafts if i == 0 else [])]
            groups = [r.cache_groups(self.cache_dtype, self._options.block_size) for r in there]
            part = EnginePart(
                device=HOST if gpus is None else gpus.names[replica * count + i],
                weight_bytes=sum(r.weight_bytes for r in there),
                workspace_bytes=self._workspace_bytes(rank),
                other_bytes=0 if gpus is None else GPU_CONTEXT_BYTES,
                cache_ratio=self._ratio(groups),
            )
            found.append(part)
        return [*found, self._host_part()]

    def _workspace_bytes(self, rank: Rank) -> int:
        from tuili.runtime.devices.torch_memory import workspace_bytes

        num_seqs = self._options.max_num_seqs
        if self._gpus is None:
            return workspace_bytes(rank.spec, num_tokens=self._num_tokens, num_positions=self._length)
        return rank.workspace_bytes(min(self._num_tokens, self._length * num_seqs), self._length, num_seqs)

    def _host_part(self) -> EnginePart:
        """Processes, tokenizer, memory for swapped blocks, and layers that are on the host beside a GPU."""
        from tuili.runtime.devices.torch_memory import LIBRARY_BYTES

        ranks = [self._ranks[0], *self._drafts]
        groups = [rank.host_cache_groups(self.cache_dtype, self._options.block_size) for rank in ranks]
        swapped = int(self._options.swap_space * 2**30)
        return EnginePart(
            device=HOST,
            weight_bytes=sum(
                rank.host_weight_bytes(outline.stored) for rank, outline in zip(ranks, self._outlines, strict=True)
            ),
            workspace_bytes=0,
            other_bytes=_process_bytes(self._outlines[0].spec) + len(self._ranks) * (LIBRARY_BYTES + swapped),
            cache_ratio=self._ratio(groups),
        )

    def _ratio(self, of_models: Sequence[Groups]) -> float:
        """Of the cache as it is counted, at most."""
        counted = [group for groups in self._counted[: len(of_models)] for group in groups]
        own = [group for groups in of_models for group in groups]
        return max(mine.block_bytes / whole.block_bytes for mine, whole in zip(own, counted, strict=True))


def _process_bytes(spec: ModelSpec) -> int:
    return ENGINE_BYTES + spec.vocab_size * TOKENIZER_BYTES


def _num_tokens(options: LoadOptions, best: int) -> int:
    return options.max_num_batched_tokens or max(best, options.max_num_seqs)
