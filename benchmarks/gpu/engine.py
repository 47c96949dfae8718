"""The engine on the Qwen3-1.7B shape in bfloat16, beside transformers on the same weights in the same process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import torch
from benchmarks.gpu.measures import FULL, SMOKE, LoadedModel, Sizes, decode_orders, decode_seconds, measure_all
from benchmarks.gpu.peer import Peer
from benchmarks.gpu.profiling import profiles
from benchmarks.gpu.records import Record, Recorder, stage_arguments
from benchmarks.gpu.shapes import write_folder

from tuili.weights.checkpoint import open_checkpoint

REFERENCE_PROGRAM_S = 37.0  # a program of 1500 tokens by transformers on an A800
_START_LIMIT_S = 60


class Comparison:
    """A folder of weights, the model that tuili makes of it, and the peer, which loads when it is first asked."""

    def __init__(
        self, shape: str, folder: Path, device: torch.device, sizes: Sizes, *, enforce_eager: bool = False
    ) -> None:
        self.folder, self.device, self.sizes = folder, device, sizes
        write_folder(shape, folder)
        checkpoint = open_checkpoint(folder)
        self.model = LoadedModel(shape, checkpoint.spec, checkpoint.weights, device, sizes, enforce_eager=enforce_eager)

    @cached_property
    def peer(self) -> Peer:
        return Peer(self.folder, self.device)

    def cold(self) -> Iterator[Record]:
        """The first requests of all, whose kernels may have to be compiled."""
        run = self.model.run(self.model.prompts(1, 8), 2)
        yield {
            "name": f"{self.model.name} load", "value": self.model.load_s, "unit": "s",
            "first_request_s": run.total_s, "weight_bytes": self.model.weight_bytes,
        }  # fmt: skip

    def alone(self) -> Iterator[Record]:
        """B=1 in turns, and whether both write the same."""
        sizes, model = self.sizes, self.model
        prompts = model.prompts(1, 8)
        ours, theirs = [], []
        self.peer.generate(prompts, 2)
        for _ in range(2):
            run = model.run(prompts, sizes.peer_tokens + sizes.warm_steps)
            ours.append(decode_seconds(run, sizes.warm_steps))
            theirs.append(self.peer.decode_seconds(prompts, sizes.peer_tokens))
        _, (text,) = self.peer.generate(prompts, sizes.peer_tokens)
        alike = next((i for i, (a, b) in enumerate(zip(text, run.tokens[0], strict=False)) if a != b), len(text))
        yield self._ratio("B=1", min(ours), min(theirs), 1) | {"same_tokens_at_first": alike, "of": len(text)}

    def batched(self) -> Iterator[Record]:
        sizes, model = self.sizes, self.model
        prompts = model.prompts(sizes.batch, sizes.context - sizes.batch_tokens // 2)
        theirs = self.peer.decode_seconds(prompts, max(sizes.peer_tokens // 2, 3))
        ours = decode_seconds(model.run(prompts, sizes.batch_tokens), sizes.warm_steps)
        yield self._ratio(f"B={sizes.batch} at {sizes.context}", ours, theirs, sizes.batch)

    def _ratio(self, name: str, ours: float, theirs: float, batch: int) -> Record:
        return {
            "name": f"{self.model.name} against transformers {name}", "value": theirs / ours, "unit": "x",
            "tokens_per_s": batch / ours, "peer_tokens_per_s": batch / theirs, "peer_seconds": theirs,
        }  # fmt: skip

    def start(self) -> Iterator[Record]:
        """A new process on the same folder; its files are in the system's cache and its kernels are compiled."""
        command = [sys.executable, "-m", "benchmarks.gpu.start", str(self.folder), str(self.device), str(time.time())]
        found = subprocess.run(command, capture_output=True, text=True, timeout=_START_LIMIT_S, check=False)
        if found.returncode:
            raise RuntimeError(found.stderr[-300:])
        parts = json.loads(found.stdout.splitlines()[-1])
        yield {"name": f"{self.model.name} start to first token", "value": parts["first_token_s"], "unit": "s"} | parts

    def programs(self) -> Iterator[Record]:
        """The reference case: as one batch, where transformers writes one program after the other."""
        sizes, model = self.sizes, self.model
        prompts = model.prompts(sizes.programs, sizes.program_prompt)
        run = model.run(prompts, sizes.program_tokens)
        num_tokens = sizes.programs * sizes.program_tokens
        name = f"{model.name} {sizes.programs} programs of {sizes.program_tokens} tokens"
        yield {
            "name": name, "value": run.total_s, "unit": "s", "tokens_per_s": num_tokens / run.total_s,
            "ratio_to_a800_transformers": sizes.programs * REFERENCE_PROGRAM_S / run.total_s,
        }  # fmt: skip
        each = self.peer.decode_seconds(prompts[:1], sizes.peer_tokens)
        yield {"name": f"{name}, ratio to transformers here", "value": each * num_tokens / run.total_s, "unit": "x"}


def run(recorder: Recorder, device: torch.device, is_smoke: bool, enforce_eager: bool) -> None:
    sizes, shape = (SMOKE, "tiny") if is_smoke else (FULL, "Qwen3-1.7B")
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(shape, Path(folder), device, sizes, enforce_eager=enforce_eager)
        recorder.attempt("cold", comparison.cold)
        measure_all(recorder, comparison.model)
        for compare in (comparison.start, comparison.alone, comparison.batched, comparison.programs):
            recorder.attempt(compare.__name__, compare)
        recorder.attempt("decode_orders", partial(decode_orders, comparison.model))
        recorder.attempt("profiles", partial(profiles, comparison.model))
        comparison.model.close()


def main() -> int:
    parser = stage_arguments(__doc__)
    parser.add_argument("--eager", action="store_true", help="without captured graphs")
    arguments = parser.parse_args()
    recorder = Recorder(arguments.records)
    run(recorder, torch.device(arguments.device), arguments.smoke, arguments.eager)
    return 1 if recorder.num_failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
