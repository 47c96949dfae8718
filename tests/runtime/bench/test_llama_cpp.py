"""llama.cpp's meters, played by scripts that print what the real ones print."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tuili.errors import PeerError
from tuili.runtime.bench.peers.llama_cpp import LlamaCpp, find_tool
from tuili.runtime.bench.workload import Workload

BENCH = """#!/bin/sh
echo "bench $*" >> {log}
case "$*" in
  *--help*) echo "--repack <0|1>" ;;
  *"--repack 0"*) echo '[{{"avg_ts": 3.0}}, {{"avg_ts": 30.5}}]' ;;
  *"-p 0"*) echo '[{{"avg_ts": 7.5, "build_commit": "abc", "build_number": 9}}]' ;;
  *) echo '[{{"avg_ts": 1.0, "build_commit": "abc", "build_number": 9}}, {{"avg_ts": 20.5}}]' ;;
esac
"""
BATCHED = """#!/bin/sh
echo "batched $*" >> {log}
case "$*" in
  *--no-repack*) speed=8.5 ;;
  *) speed=9.5 ;;
esac
echo "loading"
echo "{{\\"speed_pp\\": 100.0, \\"speed_tg\\": $speed}}"
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    for name, script in (("llama-bench", BENCH), ("llama-batched-bench", BATCHED)):
        write_script(tmp_path / "bin" / name, script.format(log=tmp_path / "log"))
    return tmp_path


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls(tools: Path) -> list[str]:
    return (tools / "log").read_text().splitlines()


def test_prefill_takes_the_better_repacking_and_keeps_it(tools: Path) -> None:
    peer = LlamaCpp(tools / "m.gguf", 2, tools)
    workload = Workload(prompt_len=512, output_len=0)
    assert peer.measure(workload).prefill_tokens_per_s == 30.5
    assert peer.settings(workload) == "--repack 0"
    before = len(calls(tools))
    assert peer.measure(workload).speed == 30.5
    assert len(calls(tools)) == before + 1
    assert f"bench -m {tools}/m.gguf -t 2 -r 1 -o json -p 32,512 -n 0 --no-warmup --repack 0" in calls(tools)


def test_one_sequence_decodes_behind_its_prompt(tools: Path) -> None:
    peer, workload = LlamaCpp(tools / "m.gguf", 2, tools), Workload(prompt_len=32, output_len=64)
    peer.prefer(workload, "--repack 1")
    assert peer.measure(workload).decode_tokens_per_s == 7.5
    assert calls(tools)[-1].endswith("-p 0 -n 64 -d 32")


def test_many_sequences_go_to_the_batched_meter(tools: Path) -> None:
    peer, workload = LlamaCpp(tools / "m.gguf", 2, tools), Workload(num_seqs=16)
    measurement = peer.measure(workload)
    assert (measurement.prefill_tokens_per_s, measurement.decode_tokens_per_s) == (100.0, 9.5)
    assert peer.settings(workload) == "--repack 1"
    assert "-c 1664 -npp 32 -ntg 64 -npl 16" in calls(tools)[-1]
    assert peer.version == "abc (9)"


def test_missing_failing_and_mumbling_tools_are_named(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(PeerError, match=r"llama-bench is not in PATH: build llama.cpp's tools"):
        find_tool("llama-bench", None)
    peer, workload = LlamaCpp(tools / "m.gguf", 2, tools), Workload(num_seqs=2)
    write_script(tools / "bin" / "llama-batched-bench", "#!/bin/sh\necho no such file >&2; exit 3\n")
    with pytest.raises(PeerError, match="llama-batched-bench failed with code 3: no such file"):
        peer.measure(workload)
    write_script(tools / "bin" / "llama-batched-bench", "#!/bin/sh\necho hello\n")
    with pytest.raises(PeerError, match="printed no figures: 'hello"):
        peer.measure(workload)
