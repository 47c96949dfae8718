"""Which model a command line means: the rule that tells a model from a prompt, and completion of names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tuili.cli.terminal import note
from tuili.config import store_dir
from tuili.errors import InvalidRequestError
from tuili.store.catalogue import CATALOGUE, DEFAULT_MODEL
from tuili.store.names import MAX_NAME_LEN, parse_model_name
from tuili.store.store import Store, existing_path

_PATH_STARTS = ("./", "../", "~/")
_LIKENESS = 0.8  # "smolm2" is smollm2, "hello" is nothing


@dataclass(frozen=True, slots=True)
class ModelAndPrompt:
    """What to run; prompt None means none was given."""

    model: str
    prompt: str | None
    is_default: bool = False  # nobody named it


def split_arguments(
    arguments: Sequence[str], forced_model: str | None, store: Store, names: Collection[str] = ()
) -> ModelAndPrompt:
    """Reads `[MODEL] [PROMPT]`; `forced_model` leaves only a prompt. `names` are models, too.

    A prompt that all but is a model's name gets a note. Raises InvalidRequestError for more words.
    """
    is_default = False
    if forced_model is not None:
        model, rest = forced_model, list(arguments)
    elif arguments and (arguments[0] in names or is_model(arguments[0], store)):
        model, rest = arguments[0], list(arguments[1:])
    else:
        model, rest, is_default = DEFAULT_MODEL, list(arguments), True
    meant = _meant_model(rest[0], store) if rest and rest == list(arguments) and forced_model is None else None
    if len(rest) > 1:
        raise InvalidRequestError(
            f"prompt must be one argument, found {len(rest)} starting with {rest[0]!r:.80}: "
            + (f"did you mean the model {meant!r}?" if meant else "put it in quotes")
            + " (a model that is no known name goes behind --model)",
            param="prompt",
        )
    if meant:
        note(f"{rest[0]!r:.80} is taken for the prompt: did you mean the model {meant!r}?")
    return ModelAndPrompt(model, rest[0] if rest else None, is_default)


def _meant_model(word: str, store: Store) -> str | None:
    """The known name that a lone word all but is."""
    is_word = not any(map(str.isspace, word)) and len(word) <= MAX_NAME_LEN
    return store.close_name(word, _LIKENESS) if is_word else None


def is_model(argument: str, store: Store) -> bool:
    """Stored, in the catalogue, an existing path, or one word of the form ./path, org/name, name:tag or file.gguf."""
    return (
        store.has(argument)
        or store.knows(argument)
        or existing_path(argument) is not None
        or _has_name_form(argument)
        or ((argument.startswith(_PATH_STARTS) or argument.endswith(".gguf")) and not any(map(str.isspace, argument)))
    )


def _has_name_form(argument: str) -> bool:
    try:
        name = parse_model_name(argument)
    except InvalidRequestError:
        return False
    return name.organization is not None or name.tag is not None


def complete_model(incomplete: str) -> list[str]:
    """Names a shell may complete: stored models and the catalogue."""
    names = {files.name for files in Store(store_dir()).list()} | {entry.name for entry in CATALOGUE}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_stored_model(incomplete: str) -> list[str]:
    """Names of stored models a shell may complete."""
    return [files.name for files in Store(store_dir()).list() if files.name.startswith(incomplete)]
