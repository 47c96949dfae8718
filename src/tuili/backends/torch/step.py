"""The batch on the device, built once for each step: one copy there, and views of it. Knows fields and shapes only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuili.backend import Batch, Int32
from tuili.backends.torch.ops import AttentionPlan

_ALIGNED = 4  # elements of four bytes: views start where a vector load may
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32}
_ARRAY_TYPES = {torch.int32: np.int32, torch.float32: np.float32}

Array = NDArray[Any]


class Uploader:
    """Sends arrays of 4-byte elements in one copy that nobody waits for, from pinned memory where that exists.

    Two host buffers take turns: one is filled while the other may still be read by the device. What comes back is
    valid until the next upload, which the device does in order.
    """

    def __init__(self, device: torch.device, *, is_fixed: bool = False) -> None:
        """is_fixed: what lies on the device stays where it is as long as no upload is larger than the first."""
        self._device = device
        self._is_direct = device.type == "cpu" and not is_fixed
        self._is_cuda = device.type == "cuda"
        self._hosts: list[Tensor] = []
        self._sent: list[Any] = []  # events: that copy is done
        self._on_device = torch.empty(0, dtype=torch.int32, device=device)
        self._turn = 0

    def upload(self, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        """Views on the device by name, int32 or float32."""
        views: dict[str, Tensor] = {}
        sent, places = self._sent_arrays(arrays)
        for place, (name, array) in zip(places, arrays.items(), strict=True):
            views[name] = sent[place : place + array.size].view(_TYPES[array.dtype]).view(array.shape)
        return views

    def refresh(self, arrays: Mapping[str, Array]) -> None:
        """Has the views of the upload before, of the same shapes, show these numbers; where it is fixed."""
        assert not self._is_direct
        self._sent_arrays(arrays)

    def _sent_arrays(self, arrays: Mapping[str, Array]) -> tuple[Tensor, list[int]]:
        """All numbers on the device, and where each array begins among them."""
        places, size = [], 0
        for array in arrays.values():
            places.append(size)
            size += -(-array.size // _ALIGNED) * _ALIGNED
        if size > self._on_device.numel():
            self._grow(size)
        host = self._free_host()
        numbers = host.numpy()
        for place, array in zip(places, arrays.values(), strict=True):
            numbers[place : place + array.size] = array.reshape(-1).view(np.int32)
        return self._send(host, size), places

    def _grow(self, size: int) -> None:
        capacity = max(1024, 1 << (size - 1).bit_length())
        self._hosts = [torch.empty(capacity, dtype=torch.int32, pin_memory=self._is_cuda) for _ in range(2)]
        self._sent = [torch.cuda.Event() for _ in range(2)] if self._is_cuda else []
        self._on_device = torch.empty(capacity, dtype=torch.int32, device=self._device)

    def _free_host(self) -> Tensor:
        self._turn ^= 1
        if self._is_cuda:
            self._sent[self._turn].synchronize()  # of the upload before last: done long ago
        return self._hosts[self._turn]

    def _send(self, host: Tensor, size: int) -> Tensor:
        if self._is_direct:
            return host
        self._on_device[:size].copy_(host[:size], non_blocking=self._is_cuda)
        if self._is_cuda:
            self._sent[self._turn].record()
        return self._on_device


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the layers of one step need."""

    input_ids: Tensor  # int32 [T], without those carried
    positions: Tensor  # int32 [T]
    carry_slots: Tensor | None  # int32 [T] the slot whose last token comes here, else -1; None: nowhere
    slot_mapping: Tensor  # int32 [G, T]
    plans: tuple[AttentionPlan, ...]  # of each cache group
    block_copies: Tensor  # int32 [N, 3]
    sample_rows: Tensor  # int32 [R]
    targets: Tensor  # int32 [R]
    num_logprobs: Tensor  # int32 [R]
    logit_rows: Tensor | None  # int32 [W] the rows whose logits are wanted; None: nobody's
    kept_rows: Tensor  # int32 [K] the rows whose choices are their slots' last tokens
    kept_slots: Tensor  # int32 [K]


def upload_batch(batch: Batch, uploader: Uploader) -> StepInputs:
    """One copy to the device, whatever the batch holds."""
    kept_rows, kept_slots = last_choices(batch)
    arrays: dict[str, Array] = {
        "input_ids": batch.input_ids,
        "positions": batch.positions,
        "slot_mapping": batch.slot_mapping,
        "query_start": batch.query_start,
        "seq_lens": batch.seq_lens,
        "block_tables": batch.block_tables,
        "block_copies": batch.block_copies,
        "sample_rows": batch.sample_rows,
        "targets": batch.targets,
        "num_logprobs": batch.num_logprobs,
        "kept_rows": kept_rows,
        "kept_slots": kept_slots,
    }
    if batch.carry.any():
        arrays["carry_slots"] = carry_slots(batch)
    if batch.want_logits is not None:
        arrays["logit_rows"] = np.flatnonzero(batch.want_logits).astype(np.int32)
    sent = uploader.upload({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return StepInputs(
        input_ids=sent["input_ids"],
        positions=sent["positions"],
        carry_slots=sent.get("carry_slots"),
        slot_mapping=sent["slot_mapping"],
        plans=attention_plans(batch, sent["query_start"], sent["seq_lens"], sent["block_tables"]),
        block_copies=sent["block_copies"],
        sample_rows=sent["sample_rows"],
        targets=sent["targets"],
        num_logprobs=sent["num_logprobs"],
        logit_rows=sent.get("logit_rows"),
        kept_rows=sent["kept_rows"],
        kept_slots=sent["kept_slots"],
    )


def attention_plans(
    batch: Batch, query_start: Tensor, seq_lens: Tensor, block_tables: Tensor
) -> tuple[AttentionPlan, ...]:
    """The same queries for every cache group, each over its own blocks."""
    lengths = np.diff(batch.query_start)
    numbers = (int(lengths.max()), int(batch.seq_lens.max()), int((lengths == 1).sum()))
    return tuple(AttentionPlan(query_start, seq_lens, table, *numbers) for table in block_tables)


def carry_slots(batch: Batch) -> Int32:
    """[T] the slot whose last token an input is, else -1."""
    slots = np.full(len(batch.input_ids), -1, np.int32)
    slots[batch.query_start[1:][batch.carry] - 1] = batch.slots[batch.carry]
    return slots


def last_choices(batch: Batch) -> tuple[Int32, Int32]:
    """(Rows, slots): of each sequence that chooses tokens, the last row that does; scored targets choose nothing."""
    rows = np.flatnonzero(batch.targets < 0).astype(np.int32)
    sequences = np.searchsorted(batch.query_start, batch.sample_rows[rows], side="right") - 1
    is_last = np.ones(len(rows), np.bool_)
    is_last[:-1] = sequences[1:] != sequences[:-1]
    return rows[is_last], batch.slots[sequences[is_last]]


class Download:
    """int32 and float32 tensors on their way back, in one copy."""

    def __init__(self, tensors: ListLike[Tensor]) -> None:
        self._shapes = [(tuple(tensor.shape), _ARRAY_TYPES[tensor.dtype]) for tensor in tensors]
        self._flat = torch.cat([tensor.reshape(-1).view(torch.int32) for tensor in tensors])
        self._done: Any = None
        if self._flat.is_cuda:
            host = torch.empty(self._flat.shape, dtype=torch.int32, pin_memory=True)
            self._flat = host.copy_(self._flat, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def arrays(self) -> list[Array]:
        """The tensors in their order, once the device has made them."""
        if self._done is not None:
            self._done.synchronize()
        flat, arrays, start = self._flat.cpu().numpy(), [], 0
        for shape, dtype in self._shapes:
            size = math.prod(shape)
            arrays.append(flat[start : start + size].view(dtype).reshape(shape))
            start += size
        return arrays
