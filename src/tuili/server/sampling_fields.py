"""Sampling parameters under a wire format's own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.types import SamplingParams


def named_sampling(values: Mapping[str, Any], names: Mapping[str, str]) -> SamplingParams:
    """SamplingParams of `values`; `names` is what the caller calls each field.

    Raises InvalidRequestError naming the field as the caller wrote it.
    """
    try:
        return SamplingParams(**values)
    except InvalidRequestError as error:
        if error.param is None or error.param not in names:
            raise
        name = names[error.param]
        raise InvalidRequestError(str(error).replace(error.param, name, 1), param=name) from None
