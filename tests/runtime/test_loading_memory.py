"""What a process holds while it loads a model and after: weights, cache, a bounded rest; no file stays mapped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CACHE_BYTES = 32 << 20
REST_BYTES = 250 * 10**6  # interpreter, libraries, tokenizer, workspace

LOAD = """
import json, sys, threading
from tuili.machine import process_memory
peak, is_done = 0, threading.Event()
def watch():
    global peak
    while not is_done.wait(0.002):
        peak = max(peak, process_memory()[0])
watcher = threading.Thread(target=watch)
watcher.start()
from tuili.runtime.loading.loading import LoadOptions, open_model
options = LoadOptions(max_num_seqs=1, max_model_len=2048, kv_cache_memory_bytes=int(sys.argv[2]))
with open_model(sys.argv[1], options) as model:
    is_done.set()
    watcher.join()
    maps = open("/proc/self/maps").read()
    print(json.dumps([peak, process_memory()[0], model.backend.weight_bytes, sys.argv[1] in maps]))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_loading_holds_weights_once(smollm2_gguf: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(smollm2_gguf.resolve()), str(CACHE_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, after, weight_bytes, is_mapped = json.loads(done.stdout)
    assert weight_bytes > 90 * 10**6
    assert after > weight_bytes
    assert peak <= 1.05 * weight_bytes + CACHE_BYTES + REST_BYTES
    assert not is_mapped
