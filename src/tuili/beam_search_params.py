"""What a person may ask of beam search, checked field by field. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tuili.checks import refusal
from tuili.errors import InvalidRequestError
from tuili.sampling_checks import Bounds, check_number

MAX_BEAMS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class BeamSearchParams:
    """How to search beams, under vLLM's names; early_stopping is transformers'.

    A beam's score is the sum of its tokens' log probabilities over its length to the power of length_penalty.
    temperature above 0, at least 0.01, divides the logits first; length_penalty is in [-10, 10].
    early_stopping True ends as soon as beam_width answers are complete; False when no running beam could do better at
    its present length; "never" when none could at any length.
    Raises InvalidRequestError naming the field, what was found and what is allowed.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool | Literal["never"] = False
    skip_special_tokens: bool = True
    structured_outputs: None = None

    def __post_init__(self) -> None:
        check_number("beam_width", self.beam_width, Bounds(1, MAX_BEAMS, f"an integer in [1, {MAX_BEAMS}]", True))
        check_number("max_tokens", self.max_tokens, Bounds(1, 2**31 - 1, f"an integer in [1, {2**31 - 1}]", True))
        check_number("temperature", self.temperature, Bounds(0, 2, "in [0, 2]"))
        if 0 < self.temperature < 0.01:
            object.__setattr__(self, "temperature", 0.01)
        check_number("length_penalty", self.length_penalty, Bounds(-10, 10, "in [-10, 10]"))
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise refusal(name, getattr(self, name), "true or false")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise refusal("early_stopping", self.early_stopping, "true, false or 'never'")
        if self.structured_outputs is not None:
            raise InvalidRequestError(
                "structured_outputs is not supported: structured output comes later", param="structured_outputs"
            )
