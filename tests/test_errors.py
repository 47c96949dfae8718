"""Whatever a file put into a message, it stays one line of bounded length."""

from __future__ import annotations

import pickle

import pytest

from tuili import errors
from tuili.errors import MAX_MESSAGE_CHARS, InvalidRequestError, ModelFileError, TuiliError, UnsupportedModelError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TuiliError)]


@pytest.mark.parametrize("kind", KINDS)
def test_messages_are_one_printable_line(kind: type[TuiliError]) -> None:
    message = str(kind("model.gguf: tensor a\nb\x1b[31m\u202e\ud800 is missing"))
    assert message == "model.gguf: tensor a b [31m   is missing"
    assert str(kind("推理 größe")) == "推理 größe"


def test_long_messages_keep_what_was_found_and_what_is_allowed() -> None:
    message = str(ModelFileError(f"model.gguf: {'x' * 10**6}, at most 5 are allowed"))
    assert len(message) == MAX_MESSAGE_CHARS
    assert message.startswith("model.gguf: xxx")
    assert " ... xxx" in message
    assert message.endswith("xxx, at most 5 are allowed")
    exact = "y" * MAX_MESSAGE_CHARS
    assert str(ModelFileError(exact)) == exact


def test_errors_keep_their_kind_and_field() -> None:
    error = InvalidRequestError("n must be in [1, 128], got 0", param="n")
    assert (error.param, error.status, error.exit_code) == ("n", 400, 2)
    assert isinstance(error, ValueError)
    assert UnsupportedModelError("x").exit_code == ModelFileError("x").exit_code == 2
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.param) == (str(error), "n")
