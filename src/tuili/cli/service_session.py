"""What `tuili service` does: checks, writes or removes units and their environment file, and tells each step."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import secrets
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from tuili.cli.serve_options import ServeCommand, given_flags
from tuili.cli.service_unit import ServiceUnit, socket_address
from tuili.cli.shared_options import Command
from tuili.cli.systemd import Systemd
from tuili.errors import ConflictError, InvalidRequestError
from tuili.server.guards.bind import is_loopback
from tuili.server.listeners import Address
from tuili.server.settings.serve_settings import ServeSettings
from tuili.server.settings.settings_sources import resolve
from tuili.store.names import is_path_like
from tuili.store.store import existing_path

EXIT_INACTIVE, EXIT_UNKNOWN = 3, 4  # as systemctl status has them
KEY_VARIABLE = "TUILI_SERVE_API_KEY"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_KEYS = ("api_key", "admin_api_key")
_HOMES = ("/home", "/root", "/run/user")
_NOT_STARTED, _EXITED = "0", "1"  # of ExecMainCode, which is waitid's; others are ends by a signal
_SHOWN = (
    *("LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "MemoryCurrent"),
    *("ActiveEnterTimestamp", "Result", "ExecMainCode", "ExecMainStatus", "FragmentPath"),
)
_HEAD = """\
# Read by the service {name} as it starts; for root and the service alone. One NAME=value a line:
# TUILI_SERVE_API_KEY        asks models          TUILI_SERVE_ADMIN_API_KEY  asks and manages them
# TUILI_SERVE_<SETTING>      any other setting of `tuili serve`
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """The flags of `service`."""

    name: str = "tuili"
    user: bool = False
    run_as: str | None = None
    has_socket: bool = True
    dry_run: bool = False

    def check(self) -> None:
        """Raises InvalidRequestError."""
        if _NAME.fullmatch(self.name) is None:
            raise InvalidRequestError(
                f"name must be lower case letters, digits, '_' and '-', got {self.name!a:.80}", param="name"
            )
        if self.user and self.run_as is not None:
            raise InvalidRequestError("run_as has no place with user: it is you", param="run_as")
        if self.run_as is not None:
            try:
                pwd.getpwnam(self.run_as)
            except KeyError as error:
                raise InvalidRequestError(f"there is no user {self.run_as!a:.80} here", param="run_as") from error


def install(
    settings: ServiceSettings, arguments: Sequence[str], serve_command: Command, out: Callable[[str], None]
) -> int:
    """Writes the units and starts them. Everything is checked before anything is written, the arguments as
    serve_command, that of `tuili serve`, takes them.
    """
    settings.check()
    systemd = Systemd(settings.user)
    words = [_absolute(word) for word in arguments]
    environment_file = systemd.config_folder / "tuili" / f"{settings.name}.env"
    serve = _serve_settings(words, serve_command, _environment(environment_file))
    unit = ServiceUnit(
        name=settings.name,
        program=_program(),
        arguments=tuple(words),
        environment_file=environment_file,
        drain_timeout_s=serve.drain_timeout_s,
        port=serve.port,
        run_as=settings.run_as,
        is_user=settings.user,
        sockets=_held_by_systemd(serve.addresses()) if settings.has_socket else (),
    )
    _check_readable(unit)
    if settings.dry_run:
        texts = (unit.text(), unit.socket_text()) if unit.sockets else (unit.text(),)
        out("\n".join(texts))
        return 0
    systemd.check()
    needs_key = not (serve.insecure or serve.uds or is_loopback(serve.widest_host))
    _write_environment(environment_file, settings.name, needs_key, out)
    _install_units(unit, systemd, out)
    return 0


def _install_units(unit: ServiceUnit, systemd: Systemd, out: Callable[[str], None]) -> None:
    """A port changes hands only while nothing is served there: where it stays systemd's, connections wait."""
    path = systemd.unit_folder / f"{unit.name}.service"
    socket_path = path.with_suffix(".socket")
    service, port = path.name, socket_path.name
    before = socket_path.read_text("utf-8") if socket_path.exists() else ""
    after = unit.socket_text() if unit.sockets else ""
    if before and not after:
        systemd.call("disable", "--now", port, service)
        socket_path.unlink()
        out(f"removed {socket_path}\n")
    _write(path, unit.text(), 0o644)
    out(f"wrote {path}\n")
    if after:
        _write(socket_path, after, 0o644)
        out(f"wrote {socket_path}\n")
    systemd.call("daemon-reload")
    systemd.call("enable", *([port] if after else []), service)
    if after != before and after:
        systemd.call("stop", *([port] if before else []), service)
    systemd.call("restart", service)  # which has the socket opened first
    out(f"{service} is enabled and started; `journalctl {_scope(systemd)}-fu {unit.name}` shows what it says\n")
    if after:
        out(f"systemd listens for it: `systemctl {_scope(systemd)}stop {port}` stops both\n")
    if unit.is_user:
        out("it ends when you log out, unless you let it linger: loginctl enable-linger\n")


def status(settings: ServiceSettings, out: Callable[[str], None]) -> int:
    """Tells how the service is; the exit code is systemctl's."""
    settings.check()
    systemd = Systemd(settings.user)
    systemd.check()
    told = systemd.properties(f"{settings.name}.service", _SHOWN)
    if told.get("LoadState") != "loaded":
        out(f"{settings.name}.service is not installed\n")
        return EXIT_UNKNOWN
    rows = [("service", f"{settings.name}.service ({told.get('UnitFileState') or 'unknown'})")]
    rows += [("state", f"{told.get('ActiveState')} ({told.get('SubState')})")]
    is_active = told.get("ActiveState") == "active"
    if is_active:
        rows += [("since", told.get("ActiveEnterTimestamp", "")), ("process", told.get("MainPID", ""))]
        if told.get("MemoryCurrent", "").isdigit():
            rows += [("memory", f"{int(told['MemoryCurrent']) / 2**20:.0f} MiB")]
    else:
        rows += [("result", f"{told.get('Result')}{_ending(told)}")]
    port = systemd.properties(f"{settings.name}.socket", ("LoadState", "SubState"))
    if port.get("LoadState") == "loaded":
        rows += [("socket", f"{settings.name}.socket ({port.get('SubState')})")]
    rows += [("restarts", told.get("NRestarts", "")), ("unit", told.get("FragmentPath", ""))]
    out("".join(f"{label:<9} {value}\n" for label, value in rows if value))
    return 0 if is_active else EXIT_INACTIVE


def _ending(told: Mapping[str, str]) -> str:
    if told.get("ExecMainCode") == _NOT_STARTED:
        return ", not started yet"
    return f", {'exit code' if told.get('ExecMainCode') == _EXITED else 'signal'} {told.get('ExecMainStatus')}"


def uninstall(settings: ServiceSettings, out: Callable[[str], None]) -> int:
    """Stops the service and removes its units. Keys and models stay, and it says where."""
    settings.check()
    systemd = Systemd(settings.user)
    path = systemd.unit_folder / f"{settings.name}.service"
    socket_path = path.with_suffix(".socket")
    paths = [socket_path, path] if socket_path.exists() else [path]
    environment_file = systemd.config_folder / "tuili" / f"{settings.name}.env"
    if settings.dry_run:
        out("".join(f"would stop {one.name} and remove {one}\n" for one in paths))
        return 0
    systemd.check()
    if not path.exists():
        raise InvalidRequestError(f"{path.name} is not installed: there is no {path}", param="name")
    systemd.call("disable", "--now", *(one.name for one in paths))
    for one in paths:
        one.unlink()
        out(f"stopped {one.name} and removed {one}\n")
    systemd.call("daemon-reload")
    kept = [str(environment_file)] if environment_file.exists() else []
    kept += [] if settings.user else [f"/var/lib/{settings.name} (models)"]
    if kept:
        out(f"kept: {', '.join(kept)}\n")
    return 0


def _held_by_systemd(addresses: Sequence[Address]) -> tuple[str, ...]:
    """The ports that systemd opens: none unless it can open all, as a name may mean another address tomorrow."""
    found: list[str] = []
    for address in addresses:
        hosts = _loopbacks() if address.host.lower() == "localhost" else [_as_number(address.host.strip("[]"))]
        if address.uds is not None or not address.port or None in hosts:
            return ()
        found += [socket_address(host, address.port) for host in hosts if host is not None]
    return tuple(dict.fromkeys(found))


def _loopbacks() -> list[str | None]:
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return ["127.0.0.1", "::1"]
    return ["127.0.0.1"]


def _as_number(host: str) -> str | None:
    """An address in its shortest form; None for a name, and for what takes more than a number to listen on."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        return None
    return str(address)


def _environment(path: Path) -> Mapping[str, str]:
    """What the service's environment file sets, as far as we may read it. Raises InvalidRequestError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return {}
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} is no UTF-8 text at byte {error.start}: systemd would pass over all of it, keys included"
        ) from error
    pairs = [line.split("=", 1) for line in map(str.strip, lines) if "=" in line and not line.startswith(("#", ";"))]
    return {name.strip(): value.strip().strip("\"'") for name, value in pairs}


def _serve_settings(words: Sequence[str], serve_command: Command, environ: Mapping[str, str]) -> ServeSettings:
    """What `tuili serve` would make of the words. Raises what it raises, and InvalidRequestError for keys in them."""
    app = typer.Typer()
    app.command("serve", cls=ServeCommand)(serve_command)
    context = typer.main.get_command(app).make_context("tuili service install", list(words))
    flags: dict[str, Any] = dict(context.params)
    config = flags.pop("config")
    given = given_flags(flags)
    for name in _KEYS:
        if name in given:
            raise InvalidRequestError(
                f"{name} would be read by everybody in a command line: it goes into the service's environment file, "
                "which install makes",
                param=name,
            )
    return resolve(given, environ, config).settings


def _absolute(word: str) -> str:
    """A word that names something here as seen from everywhere; `--flag=PATH` too."""
    flag, mark, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_file = value.endswith((".toml", ".json", ".jinja", ".pem", ".key", ".crt"))
    if (is_path_like(value) or is_file) and (path := existing_path(value)) is not None:
        value = str(path.absolute())
    return f"{flag}{mark}{value}"


def _program() -> tuple[str, ...]:
    """How this tuili is started: by the script beside its interpreter, if there is one."""
    script = Path(sys.executable).parent / "tuili"
    return (str(script),) if script.is_file() else (sys.executable, "-m", "tuili.cli.main")


def _check_readable(unit: ServiceUnit) -> None:
    """Raises InvalidRequestError for what lies in somebody's home and a user made up by systemd could not read."""
    if unit.is_user or unit.run_as is not None:
        return
    for word in (*unit.program, *unit.arguments):
        path = word.partition("=")[2] if word.startswith("--") else word
        if path.startswith("/") and any(Path(path).is_relative_to(home) for home in _HOMES):
            raise InvalidRequestError(
                f"{path!a:.300} is in a home, where the service's user cannot read: put it elsewhere, "
                "or name a user who can (--run-as USER), or install for yourself (--user)"
            )


def _write_environment(path: Path, name: str, needs_key: bool, out: Callable[[str], None]) -> None:
    """Makes the file of keys, if it is not there; with a key of its own where there must be one."""
    if path.exists():
        out(f"kept {path}\n")
        return
    text = _HEAD.format(name=name)
    if needs_key:
        text += f"{KEY_VARIABLE}={secrets.token_urlsafe(32)}\n"
    _write(path, text, 0o600)
    out(f"wrote {path}{f', with a new key in {KEY_VARIABLE}' if needs_key else ''}\n")


def _write(path: Path, text: str, mode: int) -> None:
    """Whole or not at all, and never readable by more than `mode` says. Raises ConflictError."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:  # noqa: PTH123
            os.fchmod(file.fileno(), mode)
            file.write(text)
        part.replace(path)
    except OSError as error:
        raise ConflictError(
            f"cannot write {path}: {error.strerror} (a system's service takes root, or --user)"
        ) from error


def _scope(systemd: Systemd) -> str:
    return "--user " if systemd.is_user else ""
