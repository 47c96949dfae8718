"""What the torch backend does with a device's memory, as only a device can show it. Models are small and random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.records import Record

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.devices import choose_device
from tuili.backends.torch.model import Model
from tuili.config import EngineConfig
from tuili.engine.cache.cache_plan import plan_cache
from tuili.engine.engine import Engine
from tuili.models.spec import MlpSpec
from tuili.runtime.loading.memory import measured_room, size_device_cache
from tuili.types import SamplingParams, TokenDelta, TokenRequest

_UTILIZATION = 0.5
_SLACK = 64 << 20  # of allocations rounded up
_NUM_SMALL = 16


class MemoryChecks:
    """A model small enough to load again and again, whose cache could fill any device."""

    def __init__(self, device: str, is_smoke: bool) -> None:
        self.device = choose_device(device)  # with its number, which a share of its memory is set for
        wide = layer(MlpSpec(intermediate_size=256), num_heads=4, num_kv_heads=2, head_dim=64, scale=0.125)
        self.spec = decoder(*[wide] * 4, hidden_size=256, tie_word_embeddings=True)
        self.weights = random_weights(self.spec)
        self.options = BackendOptions(max_model_len=512, device=device, dtype="float32", deterministic=True)
        count, self.num_tokens, self.num_blocks = (2, 50, 8) if is_smoke else (12, 120, 24)
        rng = np.random.default_rng(5)
        self.prompts = [rng.integers(0, self.spec.vocab_size, 40).tolist() for _ in range(count)]

    def backend(self, **changes: Any) -> TorchBackend:
        backend = load_backend("torch", self.spec, self.weights, replace(self.options, **changes))
        assert isinstance(backend, TorchBackend)
        return backend

    def sizing(self) -> Iterator[Record]:
        """A measured cache leaves the device's use at the share it was given, others being as they were when it was
        measured: they go on meanwhile.
        """
        backend = self.backend(max_model_len=1 << 16)
        config = EngineConfig(
            max_model_len=1 << 16, max_num_seqs=512, max_num_batched_tokens=2048, kv_cache_dtype="auto"
        )
        room = measured_room(backend, config, _UTILIZATION)
        assert room is not None
        sized = size_device_cache(backend.cache_groups(config.block_size), config, room, may_shorten=True)
        backend.allocate_cache(plan_cache(backend.cache_groups(config.block_size), sized))
        free, total = torch.cuda.mem_get_info(self.device)
        used = (room.other_bytes + torch.cuda.memory_reserved(self.device)) / total
        yield {
            "check": "measured cache",
            "used": used,
            "used_by_all": (total - free) / total,
            "utilization": _UTILIZATION,
            "step_mib": room.step_bytes / 2**20,
            "others_mib": room.other_bytes / 2**20,
            "ok": _UTILIZATION - 0.1 < used <= _UTILIZATION + _SLACK / total,
        }
        backend.close()

    def lack(self) -> Iterator[Record]:
        """A device that is full for torch: the step is computed in parts, to the bits it has otherwise."""
        backend = self.backend(max_model_len=4096)
        driver = Driver(backend, num_blocks=512)
        text = np.random.default_rng(6).integers(0, self.spec.vocab_size, 2000).tolist()
        expected = driver.logits(text)
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info(self.device)[1]
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved(self.device) + _SLACK) / total, self.device
        )
        try:
            hoard = [self._all_of(2 << 20), self._all_of(1 << 18)]
            del hoard[1][-_NUM_SMALL:]  # of at most a megabyte: what steps of a few hundred tokens need
            found = driver.logits(text)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            hoard.clear()
        limit = driver.step([Work(driver.text(), text)]).max_tokens
        backend.close()
        is_same = bool((found == expected).all())
        yield {"check": "a step without memory, in parts", "max_tokens": limit, "ok": is_same and limit is not None}

    def _all_of(self, size: int) -> list[torch.Tensor]:
        """Tensors of that size until torch finds no memory for another."""
        found: list[torch.Tensor] = []
        while len(found) < 1 << 16:
            try:
                found.append(torch.empty(size, dtype=torch.uint8, device=self.device))
            except torch.OutOfMemoryError:
                break
        return found

    def failing(self) -> Iterator[Record]:
        """Allocations made to fail in a step: the texts are the same."""
        expected = self.texts(self.backend())
        real = Model.hidden

        def hidden(model: Model, input_ids: Any, *rest: Any) -> Any:
            if len(input_ids) > 7:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return real(model, input_ids, *rest)

        Model.hidden = hidden  # type: ignore[method-assign]
        try:
            found = self.texts(self.backend())
        finally:
            Model.hidden = real  # type: ignore[method-assign]
        yield {"check": "texts with failing allocations", "ok": found == expected}

    def swap(self) -> Iterator[Record]:
        """Preempted texts that come back from pinned memory go on as they would have."""
        expected = self.texts(self.backend())
        config = {"kv_cache_memory_bytes": self._block_bytes() * self.num_blocks}
        engines: list[Engine] = []
        anew = self.texts(self.backend(), engines, **config)
        back = self.texts(self.backend(), engines, swap_bytes=64 << 20, **config)
        stats = engines[-1].stats()
        yield {
            "check": "preempted texts from host memory",
            "preemptions": stats.num_preemptions,
            "swaps": stats.num_swaps,
            "ok": expected == anew == back and stats.num_swaps > 0,
        }

    def split(self) -> Iterator[Record]:
        """The first layers on the host: the logits within what two devices' sums differ by."""
        text = self.prompts[0]
        whole = self.backend()
        expected = Driver(whole).logits(text)
        whole.close()
        backend = self.backend(gpu_layers=2)
        found = Driver(backend).logits(text)
        backend.close()
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        yield {"check": "two of four layers on the host", "error": error, "bound": 1e-4, "ok": error <= 1e-4}

    def _block_bytes(self) -> int:
        backend = self.backend()
        (group,) = backend.cache_groups(16)
        backend.close()
        return group.block_bytes

    def texts(self, backend: TorchBackend, engines: list[Engine] | None = None, **limits: Any) -> list[list[int]]:
        """All prompts as one batch."""
        config = EngineConfig(
            **{
                "max_model_len": 16 * self.num_blocks,
                "max_num_seqs": 16,
                "max_num_batched_tokens": 64,
                "block_size": 16,
            }
            | {"kv_cache_dtype": "auto", "kv_cache_memory_bytes": 64 << 20, "enable_prefix_caching": False}
            | limits
        )
        engine = Engine(backend, config)
        found: list[list[int]] = [[] for _ in self.prompts]
        sampling = SamplingParams(temperature=0, max_tokens=self.num_tokens, ignore_eos=True)

        def sink(delta: TokenDelta) -> None:
            if delta.error is not None:
                raise delta.error
            found[int(delta.request_id)] += delta.token_ids

        for i, prompt in enumerate(self.prompts):
            engine.add(TokenRequest(request_id=str(i), prompt_token_ids=tuple(prompt), sampling=sampling, seed=0), sink)
        while engine.step():
            pass
        if engines is not None:
            engines.append(engine)
        backend.close()
        return found
