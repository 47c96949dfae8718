"""`tuili run`: answer once, complete what is piped in, or chat."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tuili.cli.model_argument import complete_model
from tuili.cli.quantize_option import QuantizeOption
from tuili.cli.run_session import RunSettings, run
from tuili.cli.sampling_options import given_only, taking_sampling
from tuili.cli.speculative_option import SpeculativeOption

_LOADING = "Loading"


@taking_sampling
def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [PROMPT]",
            autocompletion=complete_model,
            help="A model is a stored or known name, a path, org/name or name:tag; anything else is the prompt.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model, whatever it looks like.")] = None,
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the prompt as it is, without a template.")] = False,
    think: Annotated[bool | None, typer.Option(help="Ask for, or against, thinking (enable_thinking).")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "--stats", help="Show speed and timings afterwards.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Render markdown, at a terminal.")] = False,
    format: Annotated[str | None, typer.Option(help="Refused until there is structured output.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Context in tokens.", rich_help_panel=_LOADING)] = None,
    num_threads: Annotated[int, typer.Option(help="0 chooses.", rich_help_panel=_LOADING)] = 0,
    kv_cache_dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, int8 for half the memory; fp8 with torch.", rich_help_panel=_LOADING)
    ] = "auto",
    quantize: QuantizeOption = None,
    backend: Annotated[
        str | None, typer.Option(help="cpu, torch or reference; torch where it sees a GPU.", rich_help_panel=_LOADING)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of torch: cuda, cuda:1, xpu, mps, cpu.", rich_help_panel=_LOADING)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of torch: auto, bfloat16, float16, float32.", rich_help_panel=_LOADING)
    ] = "auto",
    speculative_config: SpeculativeOption = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this server; by default one of ours that runs here and has the model."),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Load the model here, whatever server runs.")] = False,
    **given: Any,
) -> None:
    """Answer a prompt, or chat when there is none. Text piped in becomes part of the prompt.

    Where a tuili server runs on this machine and has the model, it answers, unless --local or a flag of loading is
    given. TUILI_HOST names another server, TUILI_API_KEY its key. A model that is not stored yet is pulled first.
    """
    options = locals()
    settings = RunSettings(**{name: options[name] for name in RunSettings.option_names()})
    run(arguments or [], model, settings, given_only(given))
