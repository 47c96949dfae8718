"""`tuili show`: what a model is, how it renders a conversation, how it cuts a text into tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from tuili.cli.model_argument import complete_stored_model
from tuili.cli.model_description import describe, render_description, sampling_of, template_of
from tuili.cli.quantize_option import QuantizeOption, check_recipe
from tuili.cli.terminal import printable
from tuili.config import store_dir
from tuili.errors import InvalidRequestError
from tuili.store.store import Store

if TYPE_CHECKING:
    from tuili.store.records import ModelFiles
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
    system: Annotated[bool, typer.Option("--system", help="Show a Modelfile's system text.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Show its parameters, by Ollama's names.")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Show what would make it, as a Modelfile.")] = False,
    quantize: QuantizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a stored model, a .gguf file, a model directory or a Modelfile."""
    from tuili.weights.checkpoint import open_checkpoint

    views = {"rendered": rendered, "template": template, "license": license_text, "system": system}
    views |= {"parameters": parameters, "modelfile": modelfile}
    if sum((*views.values(), tokens is not None, path)) > 1:
        raise InvalidRequestError(f"only one of --tokens, --path, --{', --'.join(views)} can be shown")
    check_recipe(quantize)
    files = Store(store_dir()).resolve(name)
    if path:
        _show(str(files.path), {"path": str(files.path)}, as_json)
        return
    checkpoint = open_checkpoint(files.path)
    if tokens is not None:
        _show_tokens(checkpoint, tokens, as_json)
    elif (wanted := next((name for name, is_wanted in views.items() if is_wanted), None)) is not None:
        key, text = _VIEWS[wanted](files, checkpoint)
        value = {"messages": _SAMPLE, key: text} if wanted == "rendered" else {key: text}
        _show(text.removesuffix("\n") if wanted == "modelfile" else text, value, as_json)
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


def _rendered(files: ModelFiles, checkpoint: Checkpoint) -> tuple[str, str]:
    from tuili.runtime.front.modelfile_settings import Preamble, model_template
    from tuili.runtime.front.text_parts import open_chat_template, open_tokenizer, special_tokens

    tokenizer = open_tokenizer(checkpoint)
    own = model_template(files.modelfile, special_tokens(tokenizer))
    chat_template = own or open_chat_template(checkpoint, tokenizer, None)
    if chat_template is None:
        raise InvalidRequestError(f"{files.name} has no chat template")
    messages = Preamble.of(files.modelfile).before(_SAMPLE)
    return "prompt", str(chat_template.render(messages).plain())


def _template(files: ModelFiles, checkpoint: Checkpoint) -> tuple[str, str]:
    return "chat_template", _wanted(template_of(files, checkpoint), files.name, "chat template")


def _license(files: ModelFiles, checkpoint: Checkpoint) -> tuple[str, str]:
    own = None if files.modelfile is None else files.modelfile.license
    text = own or checkpoint.license_text or files.license or checkpoint.license
    return "license", _wanted(text, files.name, "license")


def _system(files: ModelFiles, _: Checkpoint) -> tuple[str, str]:
    text = None if files.modelfile is None else files.modelfile.system
    return "system", _wanted(text, files.name, "system text")


def _parameters(files: ModelFiles, checkpoint: Checkpoint) -> tuple[str, str]:
    from tuili.runtime.front.modelfile_view import parameters_text

    return "parameters", parameters_text(sampling_of(files, checkpoint), files.modelfile)


def _modelfile(files: ModelFiles, checkpoint: Checkpoint) -> tuple[str, str]:
    from tuili.runtime.front.modelfile_view import modelfile_text

    base = files.name if files.modelfile is None else files.modelfile.base
    sampling = sampling_of(files, checkpoint)
    return "modelfile", modelfile_text(base, template_of(files, checkpoint), sampling, files.modelfile)


def _show_tokens(checkpoint: Checkpoint, text: str, as_json: bool) -> None:
    from tuili.runtime.front.text_parts import open_tokenizer

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


_VIEWS: Mapping[str, Callable[[ModelFiles, Checkpoint], tuple[str, str]]] = {  # (key in JSON, text)
    "rendered": _rendered,
    "template": _template,
    "license": _license,
    "system": _system,
    "parameters": _parameters,
    "modelfile": _modelfile,
}
