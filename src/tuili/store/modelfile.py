"""Modelfiles: another model's weights with settings of one's own, in Ollama's notation.

Reads a file to values and says what is wrong with it; resolves no name and reads no weights.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuili.checks import shown
from tuili.errors import InvalidRequestError
from tuili.ollama_terms import OPTION_KINDS, SAMPLING_FIELDS, OptionValues, is_go_template, read_options
from tuili.sampling_params import SamplingParams
from tuili.store.modelfile_text import INSTRUCTIONS, Instruction, Place, instructions

MAX_MODELFILE_BYTES = 1 << 20
ROLES = ("system", "user", "assistant")
_NAME = re.compile(r"modelfile(\..*)?|.*\.modelfile", re.IGNORECASE | re.DOTALL)
_BEGINS = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(?:" + "|".join(INSTRUCTIONS).encode() + rb")[ \t]", re.IGNORECASE)
_LOOK_BYTES = 1 << 12
_TRUTH = {"true": True, "false": False, "1": True, "0": False}
_NOUNS: Mapping[type, str] = {int: "an integer", float: "a number", bool: "true or false"}
_ENCODINGS = ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (b"", "utf-8-sig"))
_REFUSED: Mapping[str, str] = {
    "ADAPTER": "no ADAPTER: adapters cannot be applied yet; merge it into the weights and name those in FROM",
    "DRAFT": "no DRAFT: --speculative-config '{\"model\": ...}' names a model that drafts",
}
_IGNORED: Mapping[str, str] = {
    "RENDERER": "a conversation is written by TEMPLATE, else by the template that the weights come with",
    "PARSER": "thinking is told apart by the model's own marks",
    "REQUIRES": "it names a version of Ollama",
}
_GO_TEMPLATE = (
    "a template in Jinja; leave TEMPLATE out to use the one that the weights come with, which is what most need"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Modelfile:
    """What a Modelfile says. `base` is what FROM names, as written at `base_place`.

    parameters: (name, value) as written, for people. without_effect: (what, why) of lines that change
    nothing. digest is the file's sha256.
    """

    base: str
    base_place: Place
    options: OptionValues = field(default_factory=OptionValues)
    parameters: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    template: str | None = None
    template_place: Place | None = None
    messages: tuple[tuple[str, str], ...] = ()  # (role, text)
    license: str | None = None
    without_effect: tuple[tuple[str, str], ...] = ()
    digest: str = ""


def is_modelfile(path: Path) -> bool:
    """Whether a regular file is called Modelfile, Modelfile.something or something.modelfile, or begins like one."""
    if _NAME.fullmatch(path.name):
        return True
    if path.suffix.lower() == ".gguf":
        return False
    with path.open("rb") as file:
        return _BEGINS.match(file.read(_LOOK_BYTES)) is not None


def read_modelfile(path: Path) -> Modelfile:
    """Raises InvalidRequestError naming the line, what was found and what is allowed; OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_MODELFILE_BYTES + 1)
    return parse_modelfile(data, path.name)


def parse_modelfile(data: bytes, name: str) -> Modelfile:
    """The contents of a Modelfile; `name` is the file's, for messages. Raises as read_modelfile."""
    text = _decoded(data, name)
    draft = _Draft()
    for instruction in instructions(text, name):
        _READERS.get(instruction.name, _read_other)(draft, instruction)
    if draft.base is None:
        raise _end(text, name).refusal("no FROM", "one FROM with a name, a .gguf file or a model's folder")
    return Modelfile(
        base=draft.base.value,
        base_place=draft.base.place,
        options=draft.options(),
        parameters=tuple((i.key, i.value) for i in draft.parameters),
        system=draft.system,
        template=None if draft.template is None else draft.template.value,
        template_place=None if draft.template is None else draft.template.place,
        messages=tuple(draft.messages),
        license="\n\n".join(draft.licenses) or None,
        without_effect=draft.without_effect(),
        digest=hashlib.sha256(data).hexdigest(),
    )


@dataclass(slots=True)
class _Draft:
    """What has been read so far. Of what is said twice the last counts, but of FROM, stop, MESSAGE and LICENSE."""

    base: Instruction | None = None
    template: Instruction | None = None
    system: str | None = None
    parameters: list[Instruction] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, str]] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    ignored: list[Instruction] = field(default_factory=list)

    def options(self) -> OptionValues:
        """Every value has been checked where it stood; together they are checked against the last."""
        options = read_options(self.values)
        try:
            SamplingParams(**{"max_tokens": None, **options.sampling})
        except InvalidRequestError as error:
            last = self.parameters[-1]
            raise last.place.refusal(f"PARAMETER values that contradict each other ({error})", "others") from None
        return options

    def without_effect(self) -> tuple[tuple[str, str], ...]:
        given = dict.fromkeys(i.key for i in self.parameters)
        options = [
            (f"PARAMETER {name}", "a flag of the command or the server decides it, or nothing does any more")
            for name in given
            if name in read_options(self.values).without_effect
        ]
        return (*options, *dict.fromkeys((i.name, _IGNORED[i.name]) for i in self.ignored))


def _decoded(data: bytes, name: str) -> str:
    if len(data) > MAX_MODELFILE_BYTES:
        raise Place(name, 1, 1).refusal("a larger file", f"at most {MAX_MODELFILE_BYTES} bytes")
    encoding = next(encoding for mark, encoding in _ENCODINGS if data.startswith(mark))
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        good = data[: error.start].decode(encoding, errors="replace")
        raise _end(good, name).refusal(f"byte 0x{data[error.start]:02x}", "UTF-8 text") from None


def _end(text: str, name: str) -> Place:
    lines = re.split(r"\r\n|\r|\n", text)
    return Place(name, len(lines), len(lines[-1]) + 1)


def _read_from(draft: _Draft, found: Instruction) -> None:
    if draft.base is not None:
        raise found.place.refusal("FROM again", f"one FROM, which line {draft.base.place.line} has already")
    if not found.value:
        raise found.place.refusal("an empty FROM", "a name, a .gguf file or a model's folder")
    draft.base = found


def _read_parameter(draft: _Draft, found: Instruction) -> None:
    kind = OPTION_KINDS.get(found.key)
    if kind is None:
        raise found.place.refusal(f"PARAMETER {shown(found.key)}", ", ".join(OPTION_KINDS))
    value = _parsed(kind, found)
    if found.key == "stop":
        value = (*draft.values.get("stop", ()), value)
    try:
        # Alone first: what it is told wrong for is its own.
        alone = read_options({found.key: value})
        SamplingParams(**{"max_tokens": None, **alone.sampling})
    except InvalidRequestError as error:
        raise found.place.refusal(f"PARAMETER {found.key} {shown(found.value)}", _allowed(error, found.key)) from None
    draft.values[found.key] = value
    if found.key != "stop":
        draft.parameters = [earlier for earlier in draft.parameters if earlier.key != found.key]
    draft.parameters.append(found)


def _parsed(kind: type, found: Instruction) -> Any:
    """Numbers as Python reads them in ASCII, without underscores."""
    text = found.value
    try:
        if kind is bool:
            return _TRUTH[text.lower()]
        if kind is str:
            return text
        if not text.isascii() or "_" in text:
            raise ValueError
        return kind(text)
    except (ValueError, KeyError):
        raise found.place.refusal(f"PARAMETER {found.key} {shown(text)}", _NOUNS[kind]) from None


def _allowed(error: InvalidRequestError, name: str) -> str:
    """ "top_p must be in (0, 1], got 2.0" -> "in (0, 1]"."""
    field = SAMPLING_FIELDS.get(name, name)
    text = str(error).removeprefix(f"{name} ").removeprefix(f"{field} ").removeprefix("must be ")
    return text.rpartition(", got ")[0] or text


def _read_template(draft: _Draft, found: Instruction) -> None:
    if is_go_template(found.value):
        raise found.place.refusal("a template in Go's language, which is not implemented", _GO_TEMPLATE)
    if "{" not in found.value:
        raise found.place.refusal(f"TEMPLATE {shown(found.value)}, which writes no message", _GO_TEMPLATE)
    draft.template = found


def _read_message(draft: _Draft, found: Instruction) -> None:
    if found.key not in ROLES:
        raise found.place.refusal(f"MESSAGE {shown(found.key)}", f"MESSAGE with one of {', '.join(ROLES)}, and a text")
    draft.messages.append((found.key, found.value))


def _read_system(draft: _Draft, found: Instruction) -> None:
    draft.system = found.value or None


def _read_license(draft: _Draft, found: Instruction) -> None:
    draft.licenses.append(found.value)


def _read_other(draft: _Draft, found: Instruction) -> None:
    if found.name in _REFUSED:
        raise found.place.refusal(f"{found.name} {shown(found.value)}", _REFUSED[found.name])
    draft.ignored.append(found)


_READERS: Mapping[str, Callable[[_Draft, Instruction], None]] = {
    "FROM": _read_from,
    "PARAMETER": _read_parameter,
    "TEMPLATE": _read_template,
    "MESSAGE": _read_message,
    "SYSTEM": _read_system,
    "LICENSE": _read_license,
}
