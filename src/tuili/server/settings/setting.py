"""How one setting of the server is described: its kind, its group in the help, and its names outside."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field
from typing import Any

from tuili.server.settings.setting_kinds import Duration, Kind, Many, Secret, Size, Switch

MODELS, ENGINE, LISTENING, SECURITY = "Models", "Engine", "Listening", "Security"
LIMITS, ANSWERS, RUNNING = "Limits", "Answers", "Running"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How a field is set from outside; `name` is the flag's, the file's and the variable's.

    flags are further names on the command line; variables are other programs' variables of the environment, of which
    `ollama` ones count with --ollama only. In one of those, 0 leaves the default.
    """

    name: str
    kind: Kind
    group: str
    help: str
    flags: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    ollama: str | None = None
    default: Any = None

    @property
    def shown_default(self) -> str:
        """As help and documents show it; empty for none."""
        value = self.default
        if isinstance(self.kind, Switch):
            return "on" if value else "off"
        if value in (None, "", (), {}):
            return ""
        if isinstance(self.kind, Duration):
            return f"{value:g}s" if value >= 0 else "-1"
        if isinstance(self.kind, Size):
            return f"{value >> 20}MiB" if value % (1 << 20) == 0 else f"{value >> 10}KiB"
        return f"{value:g}" if isinstance(value, float) else str(value)

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"TUILI_SERVE_{self.name.upper()}"


def setting(default: Any, group: str, kind: Kind, help: str, *flags: str, name: str = "", **more: Any) -> Any:
    """A field; `name` is given where the field's own has a unit that the outside name has not."""
    metadata = {"group": group, "kind": kind, "help": help, "flags": flags, "name": name, **more}
    is_secret = isinstance(kind, Many) and isinstance(kind.kind, Secret)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata, repr=not is_secret)


def described(f: Field[Any]) -> Setting:
    """The description that `setting` gave a field."""
    default = f.default if f.default_factory is MISSING else f.default_factory()
    return Setting(**dict(f.metadata) | {"name": f.metadata["name"] or f.name, "default": default})
