"""Where settings come from: flags, before the environment, before a file, before the defaults.

Every value given is checked, also one that a stronger source overrides, and a message says which source it is from.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.server.settings import foreign_flags
from tuili.server.settings.config_file import read_config
from tuili.server.settings.serve_settings import ServeSettings, all_settings
from tuili.server.settings.setting import Setting

CONFIG_VARIABLE = "TUILI_SERVE_CONFIG"
_PREFIX = "TUILI_SERVE_"


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in effect, where each value that is no default comes from, and what has no effect, and why."""

    settings: ServeSettings
    origins: Mapping[str, str]  # field -> flag, variable or file
    notes: tuple[str, ...] = ()


def resolve(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, config: str | None = None
) -> Resolved:
    """`flags` has values by settings' names: texts as typed, lists of them, or True and False.

    `config` is the configuration file's path, by default TUILI_SERVE_CONFIG's. Raises InvalidRequestError, which tells
    of all values that are wrong.
    """
    flags, environ = flags or {}, environ or {}
    config = config or environ.get(CONFIG_VARIABLE) or None
    layers = [_from_file(config) if config else _Layer(), _from_environment(environ), _from_flags(flags)]
    _refuse([fault for layer in layers for fault in layer.faults])
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        values.update(layer.values)
        origins.update(layer.origins)
    if values.get("ollama"):  # what Ollama's users set for it stands behind all that is said to us
        for name, (value, label) in _of_ollama(environ).items():
            if name not in values:
                values[name], origins[name] = value, label
    notes = [note for layer in layers for note in layer.notes]
    settings = ServeSettings(**values)
    return Resolved(settings, origins, (*settings.without_effect(), *notes))


class _Layer:
    """What one source says."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}  # by field
        self.origins: dict[str, str] = {}
        self.notes: list[str] = []
        self.faults: list[InvalidRequestError] = []

    def put(self, field: str, setting: Setting, label: str, read: Callable[[], Any]) -> None:
        """What `read` gives, which raises InvalidRequestError under the label."""
        self.origins[field] = label
        try:
            self.values[field] = read()
        except InvalidRequestError as error:
            self.faults.append(InvalidRequestError(str(error), param=setting.name))

    def refuse(self, message: str) -> None:
        self.faults.append(InvalidRequestError(message))

    def note_on(self, foreign: Mapping[str, Any], label: Callable[[str], str]) -> None:
        """What other servers' further flags come to."""
        for name, value in foreign.items():
            try:
                self.notes += foreign_flags.notes_on({name: value}, {name: label(name)})
            except InvalidRequestError as error:
                self.faults.append(error)


def _refuse(faults: Sequence[InvalidRequestError]) -> None:
    """Raises the only one, or one that tells of all."""
    if len(faults) > 1:
        raise InvalidRequestError(f"{len(faults)} settings are wrong: {'; '.join(map(str, faults))}")
    if faults:
        raise faults[0]


def _parsed(setting: Setting, label: str, text: str) -> Any:
    try:
        return setting.kind.parse(label, text)
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=setting.name) from None


def _from_file(path: str) -> _Layer:
    layer = _Layer()
    fields = _fields_by_name()
    foreign: dict[str, Any] = {}
    for name, value in read_config(path).items():
        label = f"{path}: {name}"
        if name in fields:
            field = fields[name]
            if field in layer.origins:
                layer.refuse(f"{label}: {layer.origins[field].removeprefix(path + ': ')} says the same")
                continue
            setting = all_settings()[field]
            layer.put(field, setting, label, partial(setting.kind.check, label, value))
        elif name in foreign_flags.known_names():
            foreign[name] = value
        else:
            layer.refuse(f"{label} is no setting: {_nearest(name, fields)}")
    layer.note_on(foreign, lambda name: f"{path}: {name}")
    return layer


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    """An empty variable is one that is not set."""
    layer = _Layer()
    known = {setting.variable: field for field, setting in all_settings().items()}
    for variable in sorted(environ):
        if variable.startswith(_PREFIX) and variable not in known and variable != CONFIG_VARIABLE:
            layer.refuse(f"{variable} is no setting: {_nearest(variable, known)}")
    for field, setting in all_settings().items():
        for variable in (*reversed(setting.variables), setting.variable):  # ours last: it wins
            if environ.get(variable):
                layer.put(field, setting, variable, partial(setting.kind.parse, variable, environ[variable]))
    return layer


def _of_ollama(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found = {}
    for field, setting in all_settings().items():
        text = environ.get(setting.ollama or "")
        if setting.ollama is None or not text or (text == "0" and setting.name != "keep_alive"):
            continue  # there, 0 leaves the choice to the server
        found[field] = _parsed(setting, setting.ollama, text), setting.ollama
    return found


def _from_flags(flags: Mapping[str, Any]) -> _Layer:
    layer = _Layer()
    fields = {setting.name: field for field, setting in all_settings().items()}
    foreign: dict[str, Any] = {}
    for name, value in flags.items():
        if name not in fields:
            foreign[name] = _plain_value(value)
            continue
        setting = all_settings()[fields[name]]
        label = "MODEL" if name == "models" else setting.flag
        layer.put(fields[name], setting, label, partial(_typed, setting, label, value))
    layer.note_on(foreign, lambda name: f"--{name.replace('_', '-')}")
    return layer


def _typed(setting: Setting, label: str, value: Any) -> Any:
    """What a flag's value means, or those of one that was given several times."""
    if isinstance(value, list | tuple):
        return tuple(item for text in value for item in setting.kind.parse(label, text))
    return value if isinstance(value, bool) else setting.kind.parse(label, value)


def _plain_value(value: object) -> object:
    """A number, an object or a word, as it is typed behind a flag whose kind is not known here."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _fields_by_name() -> dict[str, str]:
    """Every name a file may use for a field: the setting's and, with _ for -, its flags'."""
    names = {"model": "models"}
    for field, setting in all_settings().items():
        names[setting.name] = field
        for flag in setting.flags:
            if flag.startswith("--"):
                names[flag.removeprefix("--").replace("-", "_")] = field
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"did you mean {close[0]}?" if close else "`tuili serve --help` lists all there are"
