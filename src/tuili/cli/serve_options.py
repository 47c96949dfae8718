"""Flags of `tuili serve`: one for every setting of the server, and vLLM's others, of which help shows what is taken.

Names, kinds and help are the settings'. Values stay as typed: settings_sources reads them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tuili.cli.model_argument import complete_model
from tuili.cli.shared_options import Command, with_options
from tuili.server.settings import foreign_flags
from tuili.server.settings.serve_settings import all_settings
from tuili.server.settings.setting import Setting
from tuili.server.settings.setting_kinds import Many, Switch

_NAMES_FLAG = "--served-model-name"
_WITHOUT_EFFECT = "Of vLLM and LMDeploy, without effect"


class ServeCommand(TyperCommand):
    """Takes several names behind --served-model-name once a model was named, as `vllm serve` does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_names(args))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """In groups also where help is plain."""
        groups: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                is_argument = parameter.param_type_name == "argument"
                title = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def spread_names(arguments: Sequence[str]) -> list[str]:
    """`MODEL --served-model-name a b` with the flag before each name."""
    spread: list[str] = []
    has_model = is_naming = False
    for position, argument in enumerate(arguments):
        is_flag = argument.startswith("-")
        if is_naming and not is_flag and spread[-1] != _NAMES_FLAG:
            spread.append(_NAMES_FLAG)
        spread.append(argument)
        has_model = has_model or (position == 0 and not is_flag)
        is_naming = (is_naming and not is_flag) or (has_model and argument == _NAMES_FLAG)
    return spread


def taking_settings(command: Command) -> Command:
    """Gives a command a flag for every setting, as keyword arguments by the settings' names."""
    return with_options(command, _parameters())


def given_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those somebody gave."""
    return {name: value for name, value in values.items() if value not in (None, [], ())}


def _parameters() -> Iterator[inspect.Parameter]:
    names = set()
    for field, setting in all_settings().items():
        names |= {setting.name, *(flag.removeprefix("--").replace("-", "_") for flag in setting.flags)}
        yield _argument(setting) if field == "models" else _option(setting)
    for name in foreign_flags.known_names():
        if name not in names:
            yield _foreign(name)


def _argument(setting: Setting) -> inspect.Parameter:
    argument = typer.Argument(metavar="[MODEL]...", help=setting.help, autocompletion=complete_model)
    return _parameter(setting.name, list[str] | None, argument)


def _option(setting: Setting) -> inspect.Parameter:
    flags: Sequence[str] = (setting.flag, *setting.flags)
    kind: Any = list[str] | None if isinstance(setting.kind, Many) else str | None
    if isinstance(setting.kind, Switch):
        kind, flags = bool | None, [f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags]
    shown = setting.shown_default
    option = typer.Option(
        *flags,
        metavar=setting.kind.metavar or None,
        help=f"{setting.help} [{shown}]" if shown not in ("", "off") else setting.help,
        rich_help_panel=setting.group,
        show_default=False,
    )
    return _parameter(setting.name, kind, option)


def _foreign(name: str) -> inspect.Parameter:
    """One of another server's that has no effect here, or is refused."""
    words, why = name.replace("_", "-"), foreign_flags.why_without_effect(name)
    shown: dict[str, Any] = {"hidden": why is None, "help": why, "rich_help_panel": _WITHOUT_EFFECT}
    if foreign_flags.is_switch(name):
        return _parameter(name, bool | None, typer.Option(f"--{words}/--no-{words}", show_default=False, **shown))
    return _parameter(name, str | None, typer.Option(f"--{words}", metavar="VALUE", **shown))


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
