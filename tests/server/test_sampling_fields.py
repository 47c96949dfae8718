"""What is wrong with a sampling parameter is told under the name the caller wrote."""

from __future__ import annotations

import pytest

from tuili.errors import InvalidRequestError
from tuili.server.sampling_fields import named_sampling


@pytest.mark.parametrize(
    ("values", "param"), [({"stop": [""]}, "stop_sequences"), ({"top_p": 2.0}, "options.top_p"), ({"n": 0}, "n")]
)
def test_faults_have_the_callers_names(values: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{param} ") as caught:
        named_sampling(values, {"stop": "stop_sequences", "top_p": "options.top_p"})
    assert caught.value.param == param


def test_values_are_taken() -> None:
    assert named_sampling({"top_p": 0.5, "stop": "a"}, {"top_p": "p"}).top_p == 0.5
