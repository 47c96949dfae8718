"""From nothing to the first token: run as a process of its own, by the engine's stage.

python -m benchmarks.gpu.start FOLDER DEVICE STARTED
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def first_token(folder: Path, device_name: str, started: float) -> dict[str, float]:
    """Seconds since `started`, on the wall clock, at the end of each part."""
    began = time.time()
    import torch
    from benchmarks.gpu.measures import LoadedModel, Sizes

    from tuili.weights.checkpoint import open_checkpoint

    imported = time.time()
    checkpoint = open_checkpoint(folder)
    sizes = Sizes(max_model_len=64, cache_bytes=4 << 20) if device_name == "cpu" else Sizes()
    model = LoadedModel("start", checkpoint.spec, checkpoint.weights, torch.device(device_name), sizes)
    loaded = time.time()
    model.run(model.prompts(1, 8), 1)
    ends = {"python_s": began, "imports_s": imported, "load_s": loaded, "first_token_s": time.time()}
    return {name: end - started for name, end in ends.items()}


def main() -> int:
    print(json.dumps(first_token(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
