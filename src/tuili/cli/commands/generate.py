"""`tuili generate`: answer every row of a file, or the same prompt many times, and survive being killed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tuili.cli.commands import run
from tuili.cli.model_argument import complete_model
from tuili.cli.sampling_options import SAMPLING_NAMES, given_only
from tuili.cli.shared_options import taking_options
from tuili.store.catalogue import DEFAULT_MODEL

_INPUT, _OUTPUT = "Input", "Output"
_LOADING_NAMES = (
    *("max_model_len", "num_threads", "kv_cache_dtype", "quantize", "backend", "device", "dtype"),
    "speculative_config",
)


_Rows = Annotated[
    str | None,
    typer.Option("--input", "-i", metavar="FILE", help="Rows to answer; - is standard input.", rich_help_panel=_INPUT),
]
_Count = Annotated[int | None, typer.Option(help="As many rows, without a file.", rich_help_panel=_INPUT)]
_Format = Annotated[
    str | None,
    typer.Option(help="txt, jsonl, csv, tsv or parquet, if the ending does not tell.", rich_help_panel=_INPUT),
]
_PROMPT_HELP = "What to ask: {column}, {num:5-40} draws a number, {{ is a brace."
_Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help=_PROMPT_HELP, rich_help_panel=_INPUT)]
_System = Annotated[str | None, typer.Option(help="System text, filled in likewise.", rich_help_panel=_INPUT)]
_Raw = Annotated[
    bool, typer.Option("--raw", help="Complete prompts as they are, without a template.", rich_help_panel=_INPUT)
]
_IdColumn = Annotated[
    str | None, typer.Option(help="Column with the rows' ids; else id, else their numbers.", rich_help_panel=_INPUT)
]
_OUTPUT_HELP = "JSONL file; else standard output, without a journal."
_Output = Annotated[Path | None, typer.Option("--output", "-o", help=_OUTPUT_HELP, rich_help_panel=_OUTPUT)]
_OutputDir = Annotated[Path | None, typer.Option(help="Folder for a file each.", rich_help_panel=_OUTPUT)]
_Name = Annotated[str | None, typer.Option(help="What those are called: 'seed_{i}.txt'.", rich_help_panel=_OUTPUT)]
_Retry = Annotated[bool, typer.Option("--retry-failed", help="Try failed rows again.", rich_help_panel=_OUTPUT)]
_Restart = Annotated[
    bool, typer.Option("--restart", help="Begin anew, dropping what there is.", rich_help_panel=_OUTPUT)
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_OUTPUT)]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="A line for each answer.", rich_help_panel=_OUTPUT)]
_NumAnswers = Annotated[int, typer.Option("--n", min=1, help="Answers to each row.", rich_help_panel="Sampling")]
_MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Answers at a time.", rich_help_panel="Loading")]


@taking_options(("think", *SAMPLING_NAMES, *_LOADING_NAMES), run.command)
def command(
    model: Annotated[str, typer.Argument(autocompletion=complete_model)] = DEFAULT_MODEL,
    input: _Rows = None,
    count: _Count = None,
    format: _Format = None,
    prompt: _Prompt = None,
    system: _System = None,
    raw: _Raw = False,
    id_column: _IdColumn = None,
    output: _Output = None,
    output_dir: _OutputDir = None,
    name: _Name = None,
    retry_failed: _Retry = False,
    restart: _Restart = False,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
    n: _NumAnswers = 1,
    max_num_seqs: _MaxNumSeqs = 32,
    **shared: Any,
) -> None:
    """Answer every row of a text, JSONL, CSV, Parquet or OpenAI batch file, or one prompt many times.

    Killed at any moment, the same command goes on where it was: every row is answered exactly once.
    Exit codes: 0 all answered, 3 some rows failed, 2 wrong usage or input, 130 interrupted, 1 anything else.
    """
    options = {**locals(), **shared}
    from tuili.cli.generate_session import GenerateSettings, generate

    settings = GenerateSettings(**{name: options[name] for name in GenerateSettings.option_names()})
    several = {"n": n} if n > 1 else {}
    if code := generate(model, settings, {**given_only(options), **several}):
        raise typer.Exit(code)
