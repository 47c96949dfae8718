"""`tuili show`: what a model is, how it renders a conversation, how it cuts a text into tokens."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tuili.cli.model_argument import complete_stored_model
from tuili.cli.quantize_option import QuantizeOption, check_recipe
from tuili.cli.terminal import printable
from tuili.config import store_dir
from tuili.errors import InvalidRequestError
from tuili.store.store import Store

if TYPE_CHECKING:
    from tuili.weights.checkpoint import Checkpoint

_SAMPLE = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi, how can I help?"},
    {"role": "user", "content": "Why is the sky blue?"},
)


def command(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", autocompletion=complete_stored_model)],
    rendered: Annotated[bool, typer.Option("--rendered", help="Show the exact prompt of a sample chat.")] = False,
    tokens: Annotated[str | None, typer.Option(metavar="TEXT", help="Show the tokens of a text.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Show where the weights are.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Show the chat template.")] = False,
    license_text: Annotated[bool, typer.Option("--license", help="Show the license's text.")] = False,
    quantize: QuantizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a stored model, a .gguf file or a model directory."""
    from tuili.cli.model_description import describe, render_description
    from tuili.weights.checkpoint import open_checkpoint

    if sum((rendered, tokens is not None, path, template, license_text)) > 1:
        raise InvalidRequestError("only one of --rendered, --tokens, --path, --template and --license can be shown")
    check_recipe(quantize)
    files = Store(store_dir()).resolve(name)
    if path:
        _show(str(files.path), {"path": str(files.path)}, as_json)
        return
    checkpoint = open_checkpoint(files.path)
    if tokens is not None:
        _show_tokens(checkpoint, tokens, as_json)
    elif rendered:
        text = _rendered(checkpoint, files.name)
        _show(text, {"messages": _SAMPLE, "prompt": text}, as_json)
    elif template:
        from tuili.runtime.text_parts import chat_template_source

        source = _wanted(chat_template_source(checkpoint), files.name, "chat template")
        _show(source, {"chat_template": source}, as_json)
    elif license_text:
        text = _wanted(checkpoint.license_text or files.license or checkpoint.license, files.name, "license")
        _show(text, {"license": text}, as_json)
    else:
        description = describe(files, checkpoint, quantize)
        _show(render_description(description).removesuffix("\n"), description, as_json)


def _show(text: str, value: object, as_json: bool) -> None:
    """As it is into a pipe or a file; at a terminal without control characters, which a model's file may hold."""
    shown = json.dumps(value, indent=2, ensure_ascii=False) if as_json else text
    sys.stdout.write(f"{printable(shown) if sys.stdout.isatty() else shown}\n")


def _wanted(text: str | None, name: str, what: str) -> str:
    if text is None:
        raise InvalidRequestError(f"{name} has no {what}")
    return text


def _rendered(checkpoint: Checkpoint, name: str) -> str:
    from tuili.runtime.text_parts import open_chat_template, open_tokenizer

    chat_template = open_chat_template(checkpoint, open_tokenizer(checkpoint), None)
    if chat_template is None:
        raise InvalidRequestError(f"{name} has no chat template")
    return str(chat_template.render(_SAMPLE).plain())


def _show_tokens(checkpoint: Checkpoint, text: str, as_json: bool) -> None:
    from tuili.runtime.text_parts import open_tokenizer

    tokenizer = open_tokenizer(checkpoint)
    ids = tokenizer.encode(text)
    pieces = [_piece(tokenizer.token_bytes(token_id)) for token_id in ids]
    lines = [f"{token_id:>8}  {piece!r}" for token_id, piece in zip(ids, pieces, strict=True)]
    value = [{"id": token_id, "text": str(piece)} for token_id, piece in zip(ids, pieces, strict=True)]
    _show("\n".join([*lines, f"{len(ids)} tokens"]), value, as_json)


def _piece(token: bytes) -> str | bytes:
    """A token's text; the bytes of one that ends inside a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return token
