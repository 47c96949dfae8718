"""transformers' generate on the same weights: the peer of the engine's figures."""

from __future__ import annotations

import time
from pathlib import Path

import torch


class Peer:
    """A model of transformers, loaded from a folder, as its own documentation does it."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._device = device
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def generate(self, prompts: list[tuple[int, ...]], num_tokens: int) -> tuple[float, list[list[int]]]:
        """Seconds, and the tokens of each; prompts are of one length."""
        ids = torch.tensor(prompts, device=self._device)
        self._wait()
        started = time.perf_counter()
        found = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        self._wait()
        return time.perf_counter() - started, found[:, ids.shape[1] :].tolist()

    def decode_seconds(self, prompts: list[tuple[int, ...]], num_tokens: int) -> float:
        """Of a step, without the prompts': the difference of a long and a short run."""
        self.generate(prompts, 2)
        short, _ = self.generate(prompts, 2)
        long, _ = self.generate(prompts, num_tokens)
        return (long - short) / (num_tokens - 2)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
