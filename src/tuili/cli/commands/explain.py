"""`tuili explain`: one prompt followed through a model, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tuili.cli.commands import run
from tuili.cli.model_argument import complete_model
from tuili.cli.shared_options import taking_options
from tuili.cli.terminal import note, printable
from tuili.errors import InvalidRequestError


@taking_options(("num_threads", "quantize", "backend", "device", "dtype"), run.command)
def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_model)],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 12,
    top: Annotated[int, typer.Option(help="Candidates to show for each.")] = 5,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the prompt as it is, without a template.")] = False,
    inside: Annotated[bool, typer.Option(help="Look at attention with the reference backend.")] = True,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **loading: Any,
) -> None:
    """Follow a prompt through a model: template, tokens, layers, attention, KV cache, candidates, time.

    A model that is not stored yet is pulled first.
    """
    if html is not None:
        _check_page(html)
    from tuili.runtime.explain.gather import ExplainOptions, explain
    from tuili.runtime.loading.loading import LoadOptions

    options = ExplainOptions(
        max_tokens=max_tokens,
        top=top,
        temperature=temperature,
        seed=seed,
        raw=raw,
        system=system,
        inside=inside,
        load=LoadOptions(quantization=loading.pop("quantize"), owns_process=True, **loading),
    )
    found = explain(model, prompt, options)
    if html is not None:
        from tuili.runtime.explain.page import render_page

        html.write_text(render_page(found), encoding="utf-8")
        note(f"{html} is written")
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
    elif html is None:
        from tuili.runtime.explain.text import render_text

        typer.echo(printable(render_text(found)).removesuffix("\n"))


def _check_page(path: Path) -> None:
    """Raises InvalidRequestError for a place where no page can be written, before anything takes time."""
    if path.is_dir():
        raise InvalidRequestError(f"--html {path}: a folder, not a file", param="html")
    if not path.absolute().parent.is_dir():
        raise InvalidRequestError(f"--html {path}: no such folder", param="html")
