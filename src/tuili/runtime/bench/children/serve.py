"""The child's side of the conversation, a JSON object per line each way: serve.py MODULE ARGUMENTS...

First comes {"version"} or {"error"}; then each {"prompts": [[ids]], "max_tokens": n} is answered with
{"token_times_s": [[seconds]]} or {"error"}. The module beside this file brings open_peer(*arguments) -> (version, run);
it is imported once standard output is safe from what the peer prints.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

Run = Callable[[list[list[int]], int], list[list[float]]]


def serve(module: str, arguments: Sequence[str], replies: TextIO) -> None:
    """Answers until standard input ends."""
    try:
        version, run = importlib.import_module(module).open_peer(*arguments)
    except Exception as error:
        _reply(replies, {"error": _described(error)})
        return
    _reply(replies, {"version": version})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            times = run(request["prompts"], request["max_tokens"])
        except Exception as error:
            _reply(replies, {"error": _described(error)})
        else:
            _reply(replies, {"token_times_s": times})


def _reply(replies: TextIO, message: dict[str, object]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as own_output:
        os.dup2(2, 1)
        serve(sys.argv[1], sys.argv[2:], own_output)
