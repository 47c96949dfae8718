"""Other models than the first: packed in four bits, and the Qwen3-8B shape."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benchmarks.gpu.measures import FULL, SMOKE, LoadedModel, measure_all
from benchmarks.gpu.records import Record, Recorder, stage_arguments
from benchmarks.gpu.shapes import RandomWeights, model_spec

MODELS = (("Qwen3-1.7B", "Q4_0"), ("Qwen3-8B", "BF16"), ("Qwen3-8B", "Q4_K"))
SMOKE_MODELS = (("tiny", "Q4_0"),)


def run(recorder: Recorder, device: torch.device, is_smoke: bool) -> None:
    for shape, format_name in SMOKE_MODELS if is_smoke else MODELS:
        found: list[LoadedModel] = []

        def load(
            shape: str = shape, format_name: str = format_name, found: list[LoadedModel] = found
        ) -> Iterator[Record]:
            spec, name = model_spec(shape), f"{shape} {format_name}"
            model = LoadedModel(name, spec, RandomWeights(spec, format_name), device, SMOKE if is_smoke else FULL)
            found.append(model)
            yield {"name": f"{name} load", "value": model.load_s, "unit": "s", "weight_bytes": model.weight_bytes}

        recorder.attempt(f"{shape} {format_name} load", load)
        for model in found:
            measure_all(recorder, model)
            model.close()


def main() -> int:
    arguments = stage_arguments(__doc__).parse_args()
    recorder = Recorder(arguments.records)
    run(recorder, torch.device(arguments.device), arguments.smoke)
    return 1 if recorder.num_failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
