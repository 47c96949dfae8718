"""Saved conversations: what is not one is refused whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuili.cli.chat.conversation import MAX_FILE_BYTES, Conversation
from tuili.errors import InvalidRequestError

GOOD: dict[str, Any] = {"model": "m", "system": None, "sampling": {}, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no saved conversation"),
        ("[]", "is no saved conversation, which is a JSON object"),
        ("[" * 10**5, "is no saved conversation"),
        (GOOD | {"system": 3}, "system must be a string or null, got 3"),
        (GOOD | {"messages": {}}, "messages must be a list"),
        (GOOD | {"messages": [{"role": "system", "content": "x"}]}, "messages must be a list of user and assistant"),
        (GOOD | {"messages": [{"role": "user", "content": 3}]}, "messages must be a list of user and assistant"),
        (GOOD | {"messages": [{"role": "user"}]}, "messages must be a list of user and assistant"),
        (GOOD | {"sampling": []}, "sampling must hold only temperature"),
        (GOOD | {"sampling": {"colour": 1}}, "sampling must hold only temperature"),
        (GOOD | {"sampling": {"top_p": 7}}, r"top_p must be in \(0, 1\], got 7"),
    ],
)
def test_damaged_files_change_nothing(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    conversation = Conversation(system="s", messages=[{"role": "user", "content": "old"}], sampling={"seed": 1})
    with pytest.raises(InvalidRequestError, match=message):
        conversation.load(path)
    assert (conversation.system, conversation.messages[0]["content"], conversation.sampling) == (
        "s",
        "old",
        {"seed": 1},
    )


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(InvalidRequestError, match=f"a JSON object of at most {MAX_FILE_BYTES} bytes"):
        Conversation().load(path)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    conversation = Conversation(system="é", messages=list(GOOD["messages"]), sampling={"stop": ["x"]})
    conversation.save(tmp_path / "talk.json", "m")
    loaded = Conversation()
    loaded.load(tmp_path / "talk.json")
    assert loaded == conversation
    assert loaded.prompt_messages() == ({"role": "system", "content": "é"}, {"role": "user", "content": "hi"})
