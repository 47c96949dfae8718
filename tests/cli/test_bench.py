"""`tuili bench` on a real model, alone and beside stand-ins for a peer."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from support.completions_server import serving_completions

from .conftest import Cli

SMALL = ("--batch", "1,2", "--prompt-len", "8", "--output-len", "4", "--prefill-len", "16", "--rounds", "1")


def test_it_reports_rates_latency_memory_and_settings(cli: Cli, smollm2_gguf: Path) -> None:
    outcome = cli("bench", str(smollm2_gguf), *SMALL, "--num-threads", "1", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    prefill, alone, pair = report["rows"]
    assert (prefill["num_seqs"], prefill["prompt_len"], prefill["output_len"]) == (1, 16, 0)
    assert prefill["ours"]["decode_tokens_per_s"] is None
    assert [row["num_seqs"] for row in (alone, pair)] == [1, 2]
    for row in (alone, pair):
        assert row["ours"]["decode_tokens_per_s"] > 0
        assert 0 < row["ours"]["token_gap_p50_s"] <= row["ours"]["token_gap_p99_s"]
    assert (report["num_prefix_hits"], report["load_s"] > 0) == (0, True)
    assert report["engine"]["num_threads"] == 1
    assert report["memory"]["kv_cache_bytes"] > 0
    assert report["memory"]["weight_bytes"] > 80_000_000
    assert report["peer"] == {}


def test_people_get_a_table_and_spreadsheets_csv(cli: Cli, smollm2_gguf: Path) -> None:
    out = cli("bench", str(smollm2_gguf), *SMALL).out
    facts = dict(line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())
    assert facts["prefix cache"].strip().startswith("0 of ")
    assert [line.split()[0] for line in out.split("\n\n")[1].splitlines()] == ["sequences", "1", "1", "2"]
    records = list(csv.DictReader(io.StringIO(cli("bench", str(smollm2_gguf), *SMALL, "--csv").out)))
    assert [record["num_seqs"] for record in records] == ["1", "1", "2"]


def test_figures_are_drawn(cli: Cli, smollm2_gguf: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    with serving_completions() as server:
        outcome = cli("bench", str(smollm2_gguf), *SMALL, "--plot", str(picture), "--against", server.url)
    assert outcome.code == 0, outcome.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_server_is_measured_by_the_same_meter(cli: Cli, smollm2_gguf: Path) -> None:
    with serving_completions() as server:
        outcome = cli("bench", str(smollm2_gguf), *SMALL, "--against", server.url, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["peer"] == {"name": "endpoint"}
    assert all(row["prefill_ratio"] > 0 for row in report["rows"])
    assert len(server.requests) == 4


def test_a_server_is_measured_without_a_model_of_ours(cli: Cli) -> None:
    with serving_completions() as server:
        report = json.loads(cli("bench", server.url, *SMALL, "--json").out)
        table = cli("bench", server.url, *SMALL).out
        refused = cli("bench", server.url, *SMALL, "--num-threads", "1")
    assert [row["num_seqs"] for row in report["rows"]] == [1, 1, 2]
    assert all(row["ours"]["prefill_tokens_per_s"] > 0 for row in report["rows"])
    assert (report["model"], report["memory"], report["engine"]) == (server.url, None, {})
    assert [line.split()[0] for line in table.split("\n\n")[0].splitlines()] == ["model", "versions"]
    assert (refused.code, refused.err.split(" ")[1]) == (2, "num_threads")


def test_an_address_that_is_none_is_one_line(cli: Cli) -> None:
    outcome = cli("bench", "http://[::1/")
    assert outcome.code == 2
    assert outcome.err.startswith("error: 'http://[::1/' is no URL: ")


def test_a_peer_that_is_not_there_is_one_line(cli: Cli, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    outcome = cli("bench", str(smollm2_gguf), *SMALL, "--against", "llama.cpp")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: llama-bench is not in PATH: build llama.cpp's tools")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "1,x"), "batch must be numbers in [1, 256]"),
        (("--batch", "0"), "batch must be numbers in [1, 256]"),
        (("--plot", "bench.gif"), "plot must be the name of a .png file, got 'bench.gif'"),
        (("--plot", "none/bench.png"), "plot: there is no folder 'none'"),
        (("--peer-path", "bin"), "peer_path says how to reach a peer, and there is none: add --against"),
        (("--peer-model", "m"), "peer_model says how to reach a peer"),
        (("--api-key", "k"), "api_key says how to reach a peer"),
        (("--num-threads", "-1"), "num_threads must be an integer >= 0, got -1"),
        (("--json", "--csv"), "only one of --json and --csv"),
    ],
)
def test_wrong_options_are_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli("bench", "m.gguf", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")
