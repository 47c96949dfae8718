"""The one place that calls systemctl: of the machine, or of the user who asks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuili.errors import ConflictError, InvalidRequestError

_ABSENT = ("", "offline", "unknown")  # states of a manager that is not there
_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class Systemd:
    """A manager of services."""

    is_user: bool

    def check(self) -> None:
        """Raises InvalidRequestError where no such manager runs."""
        found = shutil.which("systemctl")
        state = self._run("is-system-running").stdout.strip() if found else ""
        if state in _ABSENT:
            whose = "your services (systemctl --user)" if self.is_user else "this machine's services"
            raise InvalidRequestError(
                f"systemd does not manage {whose}: start `tuili serve` by what does, or in a container "
                "(docs/deployment.md); --dry-run shows the unit"
            )

    def call(self, *arguments: str) -> str:
        """What systemctl prints. Raises ConflictError with what it says when it fails."""
        done = self._run(*arguments)
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
            raise ConflictError(f"systemctl {' '.join(arguments)}: {said}")
        return done.stdout

    def properties(self, unit: str, names: tuple[str, ...]) -> Mapping[str, str]:
        """Of a unit that may not exist. Raises ConflictError."""
        told = self.call("show", unit, f"--property={','.join(names)}")
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    @property
    def unit_folder(self) -> Path:
        """Where units of administrators, or of the user, are looked for."""
        return self.config_folder / "systemd" / ("user" if self.is_user else "system")

    @property
    def config_folder(self) -> Path:
        if not self.is_user:
            return Path("/etc")
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        scope = ("--user",) if self.is_user else ()
        command = ["systemctl", *scope, "--no-pager", *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConflictError(f"systemctl {' '.join(arguments)}: {error}") from error
