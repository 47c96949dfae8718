"""`tuili plan`: whether a model fits this machine and how fast it may be, before anything is downloaded."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tuili.cli.commands import run
from tuili.cli.model_argument import complete_model
from tuili.cli.shared_options import taking_options
from tuili.cli.terminal import showing_status


@taking_options(("num_threads", "kv_cache_dtype", "quantize"), run.command)
def command(
    model: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_model,
            help="A stored or known name, a path, org/name[:tag], or the URL of a GGUF file or a model's folder.",
        ),
    ],
    ctx: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens; by default as much of the model's as fits.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=4096, help="Sequences at once, each with all that context.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **loading: Any,
) -> int:
    """Tell whether a model fits into this machine's free memory, what it takes, and how fast it may be.

    Reads headers only: of a model that is elsewhere it fetches those few megabytes. Exit code 0: it fits, 1: it does
    not (or something failed).
    """
    from tuili.cli.plan_display import render_plan
    from tuili.runtime.plan.plan import PlanOptions, make_plan

    options = PlanOptions(ctx=ctx, parallel=parallel, quantization=loading.pop("quantize"), **loading)
    with showing_status() as status:
        plan = make_plan(model, options, status)
    typer.echo(json.dumps(plan.as_dict(), indent=2) if as_json else render_plan(plan), nl=as_json)
    return 0 if plan.fits else 1
