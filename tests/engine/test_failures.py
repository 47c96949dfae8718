"""What a damaged model or a fork does to requests: an error that says so, never silence or a hang."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from support.answers import ask, make_engine
from support.random_models import decoder, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.engine.loop import EngineLoop
from tuili.errors import EngineUnavailableError
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor
from tuili.types import TokenDelta


@pytest.mark.parametrize("backend_name", ["cpu", "reference"])
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0}, {"logprobs": 2}, {"logits_processors": [lambda ids, row: row]}]
)
def test_logits_that_are_not_numbers_end_in_an_error(backend_name: str, sampling: dict[str, Any]) -> None:
    spec = decoder()
    gains = np.full((1, spec.hidden_size), np.nan, np.float32)
    weights = {**random_weights(spec), "norm.weight": Tensor(BY_NAME["F32"], (spec.hidden_size,), gains.view(np.uint8))}
    backend = load_backend(backend_name, spec, weights, BackendOptions(max_model_len=64))
    engine = Engine(backend, EngineConfig(max_model_len=64, max_num_seqs=2))
    deltas: list[TokenDelta] = []
    engine.add(ask("r", [1, 2, 3], **sampling), deltas.append)
    while engine.step():
        engine.check()
    (delta,) = deltas
    assert delta.finish_reason == "error"
    assert "not finite" in str(delta.error)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_that_the_engine_is_not_its_own() -> None:
    loop = EngineLoop(make_engine())
    child = os.fork()
    if child == 0:
        try:
            loop.submit(ask("r", [1, 2, 3]), lambda _: None)
        except EngineUnavailableError as error:
            os._exit(0 if "load the model after forking" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    loop.close()
