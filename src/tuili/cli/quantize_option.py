"""--quantize, of every command that loads a model. Knows the flag; the recipes are weights.recipes'."""

from __future__ import annotations

from typing import Annotated

import typer

QuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="RECIPE",
        help="Run float weights narrower: q8_0, q6_k, q5_k_m, q4_k_m, q4_0, iq4_xs, q3_k_m, q2_k and others.",
        rich_help_panel="Loading",
    ),
]


def check_recipe(name: str | None) -> None:
    """Raises InvalidRequestError for a name that is no recipe."""
    if name is not None:
        from tuili.weights.recipes import find_recipe

        find_recipe(name)
