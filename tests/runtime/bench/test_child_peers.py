"""Peers with an interpreter of their own: the real child scripts over stand-ins for the peers' packages."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tuili.errors import InvalidRequestError, PeerError
from tuili.runtime.bench.against import open_peer, peer_modules
from tuili.runtime.bench.child import ChildPeer
from tuili.runtime.bench.peers import vllm
from tuili.runtime.bench.peers.openvino import OpenVino
from tuili.runtime.bench.target import PeerTarget
from tuili.runtime.bench.workload import Workload

from .test_llama_cpp import write_script

OPENVINO = "Tensor = list\n"
OPENVINO_GENAI = """
import time
print("noise on standard output")
class Config: pass
GenerationConfig = SchedulerConfig = Config
class StreamerBase: pass
class StreamingStatus: RUNNING = 0
def get_version(): return "1.2.3"
class LLMPipeline:
    def __init__(self, model, device, **properties):
        assert model.endswith(".gguf") and properties == {"ATTENTION_BACKEND": "SDPA", "INFERENCE_NUM_THREADS": 2}
    def generate(self, prompt, config, streamer):
        for _ in range(config.max_new_tokens):
            time.sleep(0.01)
            streamer.write(7)
class Handle:
    def __init__(self, left): self.left, self.fresh = left, 0
    def can_read(self): return self.fresh > 0
    def read(self):
        count, self.fresh = self.fresh, 0
        output = Config()
        output.generated_ids = [7] * count
        return {0: output}
class ContinuousBatchingPipeline:
    def __init__(self, model, scheduler, device, properties):
        assert scheduler.enable_prefix_caching is False and properties == {"INFERENCE_NUM_THREADS": 2}
        self.handles = []
    def add_request(self, name, ids, config):
        if len(ids[0]) > 100: raise RuntimeError("prompt is too long")
        self.handles.append(Handle(config.max_new_tokens))
        return self.handles[-1]
    def has_non_finished_requests(self): return any(h.left for h in self.handles)
    def step(self):
        for h in self.handles:
            if h.left: h.left, h.fresh = h.left - 1, h.fresh + 1
"""
VLLM = """
__version__ = "0.1"
class SamplingParams:
    def __init__(self, max_tokens, **rest): self.max_tokens = max_tokens
class Thing:
    def __init__(self, **fields): self.__dict__.update(fields)
class Engine:
    def __init__(self): self.live = {}
    def add_request(self, name, prompt, sampling): self.live[name] = [0, sampling.max_tokens]
    def has_unfinished_requests(self): return bool(self.live)
    def step(self):
        for state in self.live.values(): state[0] += 1
        done = [Thing(request_id=n, outputs=[Thing(token_ids=[1] * s[0])]) for n, s in self.live.items()]
        self.live = {n: s for n, s in self.live.items() if s[0] < s[1]}
        return done
class LLM:
    def __init__(self, model, dtype, enable_prefix_caching, **rest):
        assert dtype == "bfloat16" and not enable_prefix_caching
        self.llm_engine = Engine()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that finds the stand-ins."""
    packages = {"openvino": OPENVINO, "openvino_genai": OPENVINO_GENAI, "vllm": VLLM}
    for name, text in packages.items():
        write_script(tmp_path / "site" / f"{name}.py", text)
    shim = f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}/site" exec {sys.executable} "$@"\n'
    write_script(tmp_path / "bin" / "python", shim)
    return tmp_path / "bin" / "python"


def target(tmp_path: Path, python: Path | None) -> PeerTarget:
    (tmp_path / "blob").write_bytes(b"GGUF rest")
    (tmp_path / "config.json").write_text("{}")
    limits = {"num_threads": 2, "max_num_seqs": 4, "max_len": 128, "vocab_size": 1000}
    return PeerTarget(model=tmp_path / "blob", peer_path=python, **limits)


def test_openvino_runs_one_sequence_on_its_faster_pipeline(tmp_path: Path, python: Path) -> None:
    peer = OpenVino(target(tmp_path, python))
    try:
        assert peer.version == "1.2.3"
        alone = Workload(prompt_len=4, output_len=3)
        assert peer.measure(alone).decode_tokens_per_s is not None
        assert peer.settings(alone) == "paged"
        together = peer.measure(Workload(num_seqs=3, prompt_len=4, output_len=3))
        assert together.trace is not None
        assert [len(times) for times in together.trace.token_times_s] == [4, 4, 4]
        with pytest.raises(PeerError, match="openvino: RuntimeError: prompt is too long"):
            peer.measure(Workload(num_seqs=2, prompt_len=101))
    finally:
        peer.close()


def test_vllm_runs_on_every_core_with_its_libraries_preloaded(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "PRELOADED", ())
    settings = PeerTarget(
        model=tmp_path, peer_path=tmp_path, num_threads=1, max_num_seqs=4, max_len=128, vocab_size=1000
    )
    target(tmp_path, python)
    peer = open_peer("vllm", settings)
    try:
        trace = peer.measure(Workload(num_seqs=2, prompt_len=4, output_len=5)).trace
        assert trace is not None
        assert [len(times) for times in trace.token_times_s] == [6, 6]
    finally:
        peer.close()
    assert vllm.environment(python, 1)["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    monkeypatch.setattr(vllm, "PRELOADED", ("libnowhere.so",))
    with pytest.raises(PeerError, match=r"libnowhere.so preloaded, which was not found: install"):
        open_peer("vllm", settings)


def test_a_child_that_dies_or_does_not_start_says_why(tmp_path: Path, python: Path) -> None:
    (tmp_path / "site" / "openvino_genai.py").write_text("raise ImportError('no such library')")
    with pytest.raises(PeerError, match="openvino: ImportError: no such library"):
        OpenVino(target(tmp_path, python))
    (tmp_path / "site" / "openvino_genai.py").write_text(
        "import os, sys; print('bad day'); sys.stdout.flush(); os._exit(7)"
    )
    with pytest.raises(PeerError, match="openvino ended with code 7: bad day"):
        OpenVino(target(tmp_path, python))
    with pytest.raises(PeerError, match="cannot be started: No such file"):
        OpenVino(target(tmp_path, tmp_path / "nowhere"))


def test_what_a_peer_needs_is_asked_for(tmp_path: Path, python: Path) -> None:
    assert sorted(peer_modules()) == ["URL", "llama.cpp", "openvino", "vllm"]
    with pytest.raises(InvalidRequestError, match=r"against must be one of URL, llama.cpp, openvino, vllm"):
        open_peer("ollama", target(tmp_path, python))
    with pytest.raises(InvalidRequestError, match="install openvino-genai in one and name its interpreter"):
        open_peer("openvino", target(tmp_path, None))
    with pytest.raises(InvalidRequestError, match="vllm takes a Hugging Face directory, found blob"):
        open_peer("vllm", target(tmp_path, python))
    (tmp_path / "blob").write_bytes(b"other")
    settings = PeerTarget(model=tmp_path / "blob", num_threads=2, max_num_seqs=4, max_len=128, vocab_size=1000)
    with pytest.raises(InvalidRequestError, match="takes a GGUF file, found blob"):
        open_peer("llama.cpp", settings)


def test_a_child_answers_only_what_was_asked(tmp_path: Path, python: Path) -> None:
    (tmp_path / "site" / "vllm.py").write_text(VLLM.replace("s[0] < s[1]", "s[0] < 2"))
    arguments = [str(tmp_path), "4", "128"]
    peer = ChildPeer("vllm", python, "vllm_child", arguments, vocab_size=1000, rng=random.Random(0))
    try:
        with pytest.raises(PeerError, match=r"vllm made \[2\] tokens, 6 each were asked for"):
            peer.measure(Workload(output_len=5))
    finally:
        peer.close()
