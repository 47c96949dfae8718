"""`tuili run`: answer once, complete what is piped in, or chat."""

from __future__ import annotations

from typing import Annotated

import typer

from tuili.cli import sampling_options as sampling
from tuili.cli.model_argument import complete_model
from tuili.cli.run_session import RunSettings, run
from tuili.cli.speculative_option import SpeculativeOption

_LOADING = "Loading"


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
    verbose: Annotated[bool, typer.Option("--verbose", help="Show timings afterwards.")] = False,
    temperature: sampling.Temperature = None,
    top_p: sampling.TopP = None,
    top_k: sampling.TopK = None,
    min_p: sampling.MinP = None,
    max_tokens: sampling.MaxTokens = None,
    min_tokens: sampling.MinTokens = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    presence_penalty: sampling.PresencePenalty = None,
    frequency_penalty: sampling.FrequencyPenalty = None,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    ignore_eos: sampling.IgnoreEos = None,
    max_model_len: Annotated[int | None, typer.Option(help="Context in tokens.", rich_help_panel=_LOADING)] = None,
    num_threads: Annotated[int, typer.Option(help="0 chooses.", rich_help_panel=_LOADING)] = 0,
    kv_cache_dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, or int8 for half the memory.", rich_help_panel=_LOADING)
    ] = "auto",
    backend: Annotated[str | None, typer.Option(help="cpu or reference.", rich_help_panel=_LOADING)] = None,
    speculative_config: SpeculativeOption = None,
) -> None:
    """Answer a prompt, or chat when there is none. Text piped in becomes part of the prompt.

    A model that is not stored yet is pulled first.
    """
    options = locals()
    settings = RunSettings(**{name: options[name] for name in RunSettings.option_names()})
    run(arguments or [], model, settings, sampling.given_only(options))
