"""A model's settings in the notation of Modelfiles: what would make it again. The other way is the store's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.ollama_terms import ALL_TOKENS, SAMPLING_FIELDS
from tuili.runtime.front.modelfile_settings import Preamble
from tuili.store.modelfile import Modelfile
from tuili.store.modelfile_text import quoted

_NAMES = {**{field: name for name, field in SAMPLING_FIELDS.items()}, "max_tokens": "num_predict"}


def parameters(sampling: Mapping[str, Any], modelfile: Modelfile | None = None) -> Iterator[tuple[str, str]]:
    """(Name, value) of every PARAMETER that has these sampling defaults, and of a Modelfile's others."""
    for field, value in sampling.items():
        name = _NAMES.get(field, field)
        for each in value if isinstance(value, list | tuple) else [value]:
            yield name, quoted(str(-1 if each is None or (name, each) == ("repeat_last_n", ALL_TOKENS) else each))
    options = None if modelfile is None else modelfile.options
    for name in ("num_ctx", "num_keep"):
        if (number := getattr(options, name, None)) is not None:
            yield name, str(number)


def parameters_text(sampling: Mapping[str, Any], modelfile: Modelfile | None = None) -> str:
    """PARAMETER lines without the word, in columns."""
    return "\n".join(f"{name:<30} {value}" for name, value in parameters(sampling, modelfile))


def modelfile_text(
    base: str, template: str | None, sampling: Mapping[str, Any], modelfile: Modelfile | None = None
) -> str:
    """What would make a model of that template and those defaults; the template is Jinja, as its authors wrote it.

    Raises InvalidRequestError for another text that no Modelfile can hold.
    """
    preamble = Preamble.of(modelfile)
    lines = [f"FROM {base}"]
    if template is not None:
        lines.append(_template_line(template))
    if preamble.system is not None:
        lines.append(f"SYSTEM {quoted(preamble.system)}")
    lines += [f"PARAMETER {name} {value}" for name, value in parameters(sampling, modelfile)]
    lines += [f"MESSAGE {message['role']} {quoted(message['content'])}" for message in preamble.messages]
    if modelfile is not None and modelfile.license is not None:
        lines.append(f"LICENSE {quoted(modelfile.license)}")
    return "\n".join(lines) + "\n"


def _template_line(template: str) -> str:
    """In quotes also where it could do without. One that quotes would end too soon was never a Modelfile's."""
    try:
        written = quoted(template)
    except InvalidRequestError:
        return "# TEMPLATE is the one the weights come with: quotes end one of its lines, which cannot be written here"
    return f"TEMPLATE {written}" if written.startswith('"') else f'TEMPLATE """{template}"""'
