"""The text of systemd units: `tuili serve` with as few rights as it needs, and the port it serves. Writes nothing.

docs/deployment.md says what each of them keeps away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DRAIN_MARGIN_S = 15  # for telling clients, ending engines and freeing their memory, after the drain's deadline
_PRIVILEGED_PORT = 1024
# In both kinds of unit: what a process may deny itself without being privileged.
_DENIALS = (
    "NoNewPrivileges=yes",
    "MemoryDenyWriteExecute=yes",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictNamespaces=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",  # netlink: how names are resolved
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
)
_ISOLATION = (
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "RemoveIPC=yes",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceUnit:
    """A service. `program` starts tuili, `arguments` are those of `serve`.

    run_as None lets systemd make up a user that lives as long as the service; is_user is for a user's own services,
    which run as that user over that user's store. sockets: ports that systemd opens for it, as `socket_address` writes
    them; none leaves that to the service.
    """

    name: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    environment_file: Path
    drain_timeout_s: float
    port: int
    run_as: str | None = None
    is_user: bool = False
    sockets: tuple[str, ...] = ()

    def text(self) -> str:
        """The file of the service."""
        return _sections(Unit=self._unit(), Service=self._service(), Install=self._install())

    def socket_text(self) -> str:
        """The file of the socket."""
        return _sections(
            Unit=[f"Description=where tuili serves language models ({self.name})"],
            Socket=[
                *(f"ListenStream={address}" for address in self.sockets),
                f"BindIPv6Only={'both' if self._takes_all else 'ipv6-only'}",
                "Backlog=2048",  # what comes while the service is restarted
            ],
            Install=["WantedBy=sockets.target"],
        )

    @property
    def _takes_all(self) -> bool:
        return any(address.startswith("[::]:") for address in self.sockets)

    def _unit(self) -> list[str]:
        online = [] if self.is_user else ["Wants=network-online.target", "After=network-online.target"]
        socket = [f"Requires={self.name}.socket", f"After={self.name}.socket"] if self.sockets else []
        return [
            f"Description=tuili serves language models ({self.name})",
            *online,
            *socket,
            "StartLimitIntervalSec=300",
            "StartLimitBurst=10",
        ]

    def _service(self) -> list[str]:
        serve = command_line([*self.program, "serve", *self.arguments])
        return [
            "Type=exec",
            f"ExecStart={serve}",
            f"EnvironmentFile=-{_escaped(str(self.environment_file))}",
            "Restart=on-failure",
            "RestartSec=2",
            "RestartPreventExitStatus=2",  # wrong settings do not get right by starting again
            "KillMode=mixed",  # the server tells its engines itself, in order
            f"TimeoutStopSec={int(self.drain_timeout_s) + DRAIN_MARGIN_S}",
            "OOMPolicy=continue",  # an engine without memory is started again by the server
            "LimitNOFILE=65536",
            *self._identity(),
            *_DENIALS,
        ]

    def _identity(self) -> Iterable[str]:
        if self.is_user:
            return ()
        user = ("DynamicUser=yes",) if self.run_as is None else (f"User={_escaped(self.run_as)}",)
        capability = "CAP_NET_BIND_SERVICE" if 0 < self.port < _PRIVILEGED_PORT and not self.sockets else ""
        return (
            *user,
            f"StateDirectory={self.name}",
            "StateDirectoryMode=0700",
            f"Environment=TUILI_HOME=%S/{self.name} HOME=%S/{self.name}",
            f"WorkingDirectory=%S/{self.name}",
            f"CapabilityBoundingSet={capability}",
            f"AmbientCapabilities={capability}",
            f"ProtectHome={'yes' if self.run_as is None else 'read-only'}",
            *_ISOLATION,
        )

    def _install(self) -> list[str]:
        return [f"WantedBy={'default' if self.is_user else 'multi-user'}.target"]


def socket_address(host: str, port: int) -> str:
    """An address as systemd takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _sections(**sections: list[str]) -> str:
    return "\n".join(f"[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items())


def command_line(words: Sequence[str]) -> str:
    """Words as systemd reads them back: no specifier, no variable, nothing split."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"' if not escaped or set(escaped) & set(" '\"\\;") else escaped


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
