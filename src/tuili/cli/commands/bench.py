"""`tuili bench`: how fast a model runs here, alone or beside another engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tuili.cli.commands import run
from tuili.cli.model_argument import complete_model
from tuili.cli.quantize_option import check_recipe
from tuili.cli.shared_options import taking_options
from tuili.cli.terminal import showing_status
from tuili.errors import InvalidRequestError
from tuili.store.catalogue import DEFAULT_MODEL

_PEER = "Beside another engine"
_MAX_BATCH = 256
_MAX_LEN = 1 << 20  # tokens
_MAX_ROUNDS = 1000


_Against = Annotated[
    str | None, typer.Option(help="llama.cpp, openvino, vllm, or a server's URL.", rich_help_panel=_PEER)
]
_PeerPath = Annotated[
    Path | None, typer.Option(help="Folder of llama.cpp's tools, or the other's interpreter.", rich_help_panel=_PEER)
]
_PeerModel = Annotated[str | None, typer.Option(help="What it runs, if not our file.", rich_help_panel=_PEER)]
_ApiKey = Annotated[str | None, typer.Option(help="For the server.", rich_help_panel=_PEER)]


@taking_options(("num_threads", "quantize", "backend", "device", "dtype"), run.command)
def command(
    model: Annotated[str, typer.Argument(autocompletion=complete_model)] = DEFAULT_MODEL,
    batch: Annotated[str, typer.Option(help="Sequences at once, one row each.")] = "1,4,16",
    prompt_len: Annotated[int, typer.Option(min=1, max=_MAX_LEN, help="Tokens of each prompt.")] = 32,
    output_len: Annotated[int, typer.Option(min=1, max=_MAX_LEN, help="Tokens decoded after each first one.")] = 64,
    prefill_len: Annotated[int, typer.Option(min=0, max=_MAX_LEN, help="Tokens of the prefill row; 0: none.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, max=_MAX_ROUNDS, help="Repetitions; the median is shown.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    against: _Against = None,
    peer_path: _PeerPath = None,
    peer_model: _PeerModel = None,
    api_key: _ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this PNG file.")] = None,
    **loading: Any,
) -> None:
    """Measure prefill, decode, latency, memory and load time of a model on random prompts, none of them twice.

    Decode counts the time in which every sequence decodes; with --against both run in turns. MODEL may be the URL of
    a server that speaks OpenAI's protocol: then only that is measured, on the model that --peer-model names.
    """
    from tuili.cli.bench_display import render_csv, render_report
    from tuili.cli.bench_plot import check_plot, write_plot
    from tuili.runtime.bench.run import BenchOptions, run_bench

    if as_json and as_csv:
        raise InvalidRequestError("only one of --json and --csv can be printed")
    check_recipe(loading["quantize"])
    if plot is not None:
        check_plot(plot)
    options = BenchOptions(
        batch_sizes=_counts(batch),
        prompt_len=prompt_len,
        output_len=output_len,
        prefill_len=prefill_len,
        num_rounds=rounds,
        num_threads=loading["num_threads"],
        quantization=loading["quantize"],
        backend=loading["backend"],
        device=loading["device"],
        dtype=loading["dtype"],
        seed=seed,
        against=against,
        peer_path=peer_path,
        peer_model=peer_model,
        api_key=api_key,
    )
    with showing_status() as status:
        report = run_bench(model, options, status)
    if plot is not None:
        write_plot(report, plot)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        typer.echo(render_csv(report) if as_csv else render_report(report), nl=False)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or not all(1 <= n <= _MAX_BATCH for n in counts):
        raise InvalidRequestError(
            f"batch must be numbers in [1, {_MAX_BATCH}] separated by commas, got {text!r:.80}", param="batch"
        )
    return counts
