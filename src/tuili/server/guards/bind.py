"""Where a server may listen: beyond the loopback only behind a key, or when it was said to be meant."""

from __future__ import annotations

import ipaddress

from tuili.errors import InvalidRequestError
from tuili.server.http_settings import HttpSettings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there. A name other than localhost is taken for the world."""
    if host.lower() in ("localhost", ""):
        return bool(host)
    if host.startswith("/"):  # a unix socket: file permissions guard it
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_bind(settings: HttpSettings) -> None:
    """Raises InvalidRequestError for an address that others reach, without a key and without --insecure."""
    if not is_loopback(settings.host) and not settings.api_keys and not settings.is_insecure:
        raise InvalidRequestError(
            f"--host {settings.host} lets other machines in: give --api-key or --api-key-file, or --insecure to let "
            "everybody use and manage this server",
            param="host",
        )
