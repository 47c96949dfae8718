"""What `--speculative-config` says: vLLM's JSON object, or `none`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tuili.config import SpeculativeConfig
from tuili.errors import InvalidRequestError

SpeculativeOption = Annotated[
    str | None,
    typer.Option(
        metavar="JSON|none",
        help='Drafts, as {"num_speculative_tokens": 15} or {"model": "smollm2:135m"}; none computes token by token.',
        rich_help_panel="Loading",
    ),
]


def parse_speculative(text: str | None) -> SpeculativeConfig | None:
    """None, not given, is the default. Raises InvalidRequestError."""
    if text is None:
        return SpeculativeConfig()
    if text == "none":
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"speculative_config must be JSON or 'none', got {text!a:.200}: {error}", param="speculative_config"
        ) from error
    if not isinstance(values, dict):
        raise InvalidRequestError(
            f"speculative_config must be a JSON object, got {text!a:.200}", param="speculative_config"
        )
    return SpeculativeConfig.parse(values)
