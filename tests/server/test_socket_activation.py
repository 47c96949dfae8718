"""Sockets that are handed over: taken by whom they are for, where the settings say that it listens, and left open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuili.errors import InvalidRequestError
from tuili.server import socket_activation
from tuili.server.listeners import Address, open_listeners
from tuili.server.socket_activation import inherited_sockets


@pytest.fixture
def given() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def _handed_over(one: socket.socket, monkeypatch: pytest.MonkeyPatch, **environ: str) -> list[socket.socket]:
    monkeypatch.setattr(socket_activation, "_FIRST", os.dup(one.fileno()))
    return inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **environ})


def test_a_socket_handed_over_is_listened_on_and_outlives_the_server(
    given: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    (taken,) = _handed_over(given, monkeypatch)
    assert not taken.get_inheritable()
    port = given.getsockname()[1]
    listeners = open_listeners([Address(host="127.0.0.1", port=port)], [taken])
    assert (listeners.sockets, str(listeners.addresses[0])) == ([taken], f"127.0.0.1:{port}")
    listeners.close()
    with socket.create_connection(("127.0.0.1", port)):  # waits for whoever comes next
        given.accept()[0].close()


def test_a_name_of_two_families_takes_a_socket_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2")]
    found = [(family, socket.SOCK_STREAM, 6, "", (host, 0)) for family, host in both]
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    second = socket.create_server(("127.0.0.2", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    listeners = open_listeners([Address(host="localhost", port=port)], [first, second])
    assert (listeners.sockets, listeners.addresses) == ([first, second], [Address(host="localhost", port=port)])
    listeners.close()


def test_a_unix_socket_handed_over_stays_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        given.listen()
        open_listeners([Address(uds=path)], _handed_over(given, monkeypatch)).close()
        assert os.path.exists(path)  # noqa: PTH110


def test_who_closes_leaves_a_socket_that_a_successor_made_at_the_same_place(tmp_path: Path) -> None:
    addresses = [Address(uds=str(tmp_path / "socket"))]
    old = open_listeners(addresses)
    old.sockets[0].close()  # it lets nobody in any more, and answers those it has
    new = open_listeners(addresses)
    old.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
    new.close()
    assert list(tmp_path.iterdir()) == []


def test_one_that_listens_elsewhere_than_is_said_is_refused(given: socket.socket) -> None:
    """Who may be let in follows from what is said."""
    other = given.dup()
    with pytest.raises(InvalidRequestError, match=f"a socket listens on 127.0.0.1:{given.getsockname()[1]}"):
        open_listeners([Address(host="127.0.0.1", port=0)], [other])
    assert other.fileno() == -1


def test_what_is_for_another_process_or_listens_not_is_not_taken(
    given: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "A": "b"}
    assert inherited_sockets(environ) == []
    assert environ == {"A": "b"}
    assert _handed_over(given, monkeypatch, LISTEN_FDS="-1") == []
    with socket.socket() as deaf, pytest.raises(InvalidRequestError, match="does not listen"):
        _handed_over(deaf, monkeypatch)
    with pytest.raises(InvalidRequestError, match="is no socket"), Path(os.devnull).open() as file:
        _handed_over(file, monkeypatch)  # type: ignore[arg-type]


def test_localhost_is_both_loopbacks_whatever_the_system_says_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many systems know it in one family only, and systemd opens both."""
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    try:
        second = socket.create_server(("::1", port), family=socket.AF_INET6)
    except OSError:
        pytest.skip("there is no IPv6")
    named = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: named)
    listeners = open_listeners([Address(host="localhost", port=port)], [first, second])
    assert listeners.sockets == [first, second]
    listeners.close()
