"""What no HTTP client sends, on real sockets: each is answered with a 4xx or closed, and the next request is fine."""

from __future__ import annotations

import contextlib
import json
import random
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.plain_dialect import plain_dialect
from support.served import Listening, listening
from tuili.server.edge import Edge
from tuili.server.guards import http_protocol

BODY = json.dumps({"prompts": ["abc"], "max_tokens": 2}).encode()
HEAD = b"POST /plain/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
GOOD = HEAD + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(BODY) + BODY
NUM_RANDOM, NUM_AT_ONCE = 270, 30
IN_TIME_S = 60  # of a busy machine; far less than any limit of the server that waits


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    """One that waits: what it refuses, it refuses for what it read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_protocol, "_LINGER_S", 240.0)  # until the client has read the refusal
        with listening(spoken=(plain_dialect(),), header_timeout_s=240.0, body_timeout_s=240.0) as server:
            yield server


@pytest.fixture(scope="module")
def hasty_server() -> Iterator[Listening]:
    """One that soon gives up waiting."""
    with listening(spoken=(plain_dialect(),), header_timeout_s=0.3, body_timeout_s=0.3) as server:
        yield server


def exchange(server: Listening, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back until the server closes; b"" for a reset."""
    received = b""
    with server.connect() as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
            while data := connection.recv(1 << 16):
                received += data
        except ConnectionError:
            return received
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def assert_alive(server: Listening, num_tries: int = 1) -> None:
    """A busy machine may hold us back for longer than a hasty server waits."""
    answer = b""
    for _ in range(num_tries):
        answer = exchange(server, GOOD)
        if status(answer) not in (0, 408):
            break
    assert status(answer) == 200
    assert len(json.loads(answer.split(b"\r\n\r\n", 1)[1])["0.0"]) == 2


def chunked(pieces: Iterator[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


ABUSES = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
    "host behind the body": (
        HEAD.replace(b"host: localhost", b"connection: close")
        + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nhost: localhost\r\n\r\n" % (len(BODY), BODY),
        400,
    ),
    "headers behind the body": (
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 101 + b"\r\n",
        431,
    ),
    "two hosts": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\nconnection: close\r\n\r\n", 400),
    "foreign host": (b"GET /health HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n", 403),
    "absolute form": (b"GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
    "8 MiB header behind the body": (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"a" * (8 << 20), 431),
    "8 MiB beside a chunk's length": (HEAD + b"transfer-encoding: chunked\r\n\r\n2;x=" + b"a" * (8 << 20), 431),
    "length and chunks": (HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (HEAD + b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcd", 400),
    "odd length": (HEAD + b"content-length: +4\r\n\r\nabcd", 400),
    "negative length": (HEAD + b"content-length: -1\r\n\r\n", 400),
    "endless length": (HEAD + b"content-length: 99999999999999999999\r\n\r\n", 400),
    "large length": (HEAD + b"connection: close\r\ncontent-length: 999999999999\r\n\r\n", 413),
    "odd coding": (HEAD + b"transfer-encoding: gzip\r\nconnection: close\r\n\r\nabc", 400),
    "twice chunked": (HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "bad chunk size": (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", 400),
    "huge chunk size": (HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", 400),
    "space before colon": (b"GET /health HTTP/1.1\r\nhost : localhost\r\n\r\n", 400),
    "folded header": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n", 400),
    "NUL in header": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n", 400),
    "bare CR": (b"GET /health HTTP/1.1\rhost: localhost\r\r", 400),
    "bare LF": (b"GET /health HTTP/1.1\nhost: localhost\nx: y\n\n", 400),
    "8 MiB header": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * (8 << 20), 431),
    "8 MiB path": (b"GET /" + b"a" * (8 << 20), 431),
    "10000 headers": (b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 10_000, 431),
    "101 headers": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 100 + b"\r\n", 431),
    "ranges": (
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nrange: bytes="
        + b"0-1," * 10_000
        + b"\r\n\r\n",
        200,
    ),
    "boundary": (
        b"POST /plain/generate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 3\r\n"
        b"content-type: multipart/form-data; boundary=" + b"b" * 50_000 + b"\r\n\r\nabc",
        415,
    ),
    "100000 ranges": (
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nrange: bytes=" + b"0-1," * 100_000 + b"\r\n\r\n",
        431,
    ),
    "1 MiB boundary": (
        b"POST /plain/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary="
        + b"b" * (1 << 20)
        + b"\r\n\r\n",
        431,
    ),
    "traversal": (b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
    "encoded path": (b"GET /%2e%2e/%00/%ff%0d%0a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 400),
    "odd method": (b"BREW /health HTTP/1.1\r\nhost: localhost\r\n\r\n", 400),
    "trace": (b"TRACE /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
    "connect": (b"CONNECT evil.example:443 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 400),
    "websocket": (
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        200,
    ),
}
SLOW = {
    "slow headers": (b"GET /health HTTP/1.1\r\nhost: loc", 408),
    "slow body": (HEAD + b"content-length: 100\r\n\r\n{", 408),
    "slow chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", 408),
    "nothing": (b"", 0),
    "empty lines": (b"\r\n" * 3, 408),
}


def assert_answered_in_time(server: Listening, sent: bytes, expected: int) -> None:
    begun_s = time.monotonic()
    answer = exchange(server, sent)
    assert time.monotonic() - begun_s < IN_TIME_S
    assert status(answer) == expected, answer[:300]
    if expected >= 400:
        body = answer.split(b"\r\n\r\n", 1)[1]
        assert isinstance(json.loads(body), dict)
        assert b"Traceback" not in body


@pytest.mark.parametrize("name", ABUSES)
def test_abuse_is_answered_in_time_and_harms_nobody(server: Listening, name: str) -> None:
    assert_answered_in_time(server, *ABUSES[name])
    assert_alive(server)


@pytest.mark.parametrize("name", SLOW)
def test_what_never_comes_is_not_waited_for(hasty_server: Listening, name: str) -> None:
    assert_answered_in_time(hasty_server, *SLOW[name])
    assert_alive(hasty_server, num_tries=20)


def test_three_megabytes_in_chunks_of_one_byte(hasty_server: Listening) -> None:
    sent = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    begun_s = time.monotonic()
    answer = exchange(hasty_server, sent + chunked(b" " for _ in range(500_000)))
    assert status(answer) in (0, 400, 408)  # 0: given up, and closed before we had sent all
    assert time.monotonic() - begun_s < IN_TIME_S
    assert_alive(hasty_server, num_tries=20)


def test_a_body_may_come_in_any_pieces(server: Listening) -> None:
    sent = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = [sent, *(b"1\r\n%c\r\n" % byte for byte in BODY), b"0\r\n\r\n"]
    assert status(exchange(server, *pieces, pause_s=0.001)) == 200


def test_a_body_that_nobody_wants_is_read_past(server: Listening) -> None:
    unread = b"POST /elsewhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(GOOD) + GOOD
    chunks = b"POST /elsewhere HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(
        iter([GOOD] * 3)
    )
    for pieces in ((unread + chunks + GOOD,), (unread, chunks, GOOD)):
        answer = exchange(server, *pieces, pause_s=0.01)
        assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"404", b"404", b"200"]


def test_what_comes_behind_a_body_that_nobody_wants_is_bounded(server: Listening) -> None:
    """No key is asked for there: whoever it is, nothing is collected for him."""
    sent = b"POST /elsewhere HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: "
    answer = exchange(server, sent, b"a" * (8 << 20), pause_s=0.01)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"404", b"431"]


EXPECTING = (
    b"host: localhost\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(BODY)
)


@pytest.mark.parametrize("rest", [(), (BODY,), (BODY, GOOD)])
def test_who_waits_for_a_word_to_send_and_is_refused_is_told_that_the_connection_ends(
    server: Listening, rest: tuple[bytes, ...]
) -> None:
    """The body may come all the same, or another request: it is neither taken for one nor does it cost the answer."""
    answer = exchange(server, b"POST /elsewhere HTTP/1.1\r\n" + EXPECTING + b"\r\n", *rest, pause_s=0.01)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"404"]
    assert b"\r\nconnection: close\r\n" in answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])


def test_who_waits_for_a_word_to_send_gets_it_and_the_connection_goes_on(server: Listening) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /plain/generate HTTP/1.1\r\n" + EXPECTING + b"\r\n")
        word = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(word), socket.MSG_WAITALL) == word
        connection.sendall(BODY + GOOD)
        answers = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"200"]
    assert answers.count(b"\r\nconnection: close\r\n") == 1


def test_pipelined_requests_are_answered_in_order(server: Listening) -> None:
    one = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    answer = exchange(server, one + b"GET /elsewhere HTTP/1.1\r\nhost: localhost\r\n\r\n" + GOOD)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"404", b"200"]


BAD_FOLLOWERS = {
    "garbage": (b"\x00garbage\r\n\r\n", b"400"),
    "bad headers": (b"GET /health HTTP/1.1\r\nhost : localhost\r\n\r\n", b"400"),
    "bad chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
    "too many headers": (b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 101 + b"\r\n", b"431"),
}


@pytest.mark.parametrize("name", BAD_FOLLOWERS)
@pytest.mark.parametrize("pause_s", [0.0, 0.01])
def test_what_is_no_request_is_refused_behind_the_answers_to_those_before_it(
    server: Listening, name: str, pause_s: float
) -> None:
    bad, status_told = BAD_FOLLOWERS[name]
    body = json.dumps({"prompts": ["abc"], "max_tokens": 100, "stream": True}).encode()
    streamed = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    one = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    for sent, num_due in ((streamed, 1), (streamed + one + streamed, 3)):
        answer = exchange(server, sent, bad + GOOD, pause_s=pause_s)
        assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200"] * num_due + [status_told]
        assert answer.count(b'"done":0') == (1 if num_due == 1 else 2)
        last = answer.rpartition(b"\r\n\r\n")[2]
        assert isinstance(json.loads(last), dict)
    assert_alive(server)


def test_who_leaves_behind_garbage_is_noticed(server: Listening) -> None:
    """While the answer before it is computed: nothing of it is held up."""
    body = json.dumps({"prompts": ["abc"], "max_tokens": 100, "stream": True}).encode()
    with server.connect() as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body + b"\x00garbage\r\n\r\n")
    until_s = time.monotonic() + IN_TIME_S
    while server.app.state.serving.running():
        assert time.monotonic() < until_s
        time.sleep(0.001)
    assert_alive(server)


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_descriptors")
def test_five_hundred_slow_clients_keep_nobody_waiting(server: Listening) -> None:
    """Others are answered before any of them is given up."""
    idle = [server.connect() for _ in range(500)]
    for number, connection in enumerate(idle):
        connection.sendall(b"GET /health HTTP/1.1\r\nx-slow: "[: number % 30])
    begun_s = time.monotonic()
    for _ in range(5):
        assert_alive(server)
    assert time.monotonic() - begun_s < IN_TIME_S
    for connection in idle:
        connection.close()


def test_hundreds_of_slow_clients_are_all_given_up(hasty_server: Listening) -> None:
    idle = [hasty_server.connect() for _ in range(250)]
    for number, connection in enumerate(idle):
        with contextlib.suppress(ConnectionError):  # given up already, on a busy machine
            connection.sendall(b"GET /health HTTP/1.1\r\nx-slow: "[: number % 30])
    for connection in idle:
        answer = b""
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(4096):
                answer += data
        assert status(answer) in (0, 408)
    assert_alive(hasty_server, num_tries=20)


def test_random_mutants_of_requests_are_refused_or_answered(hasty_server: Listening) -> None:
    """Never a 5xx, never a hang."""
    chance = random.Random(20261121)
    streamed = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(iter([BODY[:5], BODY[5:]]))
    answers: list[int] = []

    def send(mutant: bytes) -> None:
        answers.append(status(exchange(hasty_server, mutant)))

    threads = []
    for number in range(NUM_RANDOM):
        mutant = bytearray((GOOD, streamed)[number % 2])
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(mutant))
            kind = chance.randrange(4)
            if kind == 0:
                mutant[at] = chance.randrange(256)
            elif kind == 1:
                del mutant[at : at + chance.randrange(1, 20)]
            elif kind == 2:
                mutant[at:at] = chance.randbytes(chance.randrange(1, 20))
            else:
                mutant[at:at] = mutant[at : at + 40]
            if not mutant:
                break
        threads.append(threading.Thread(target=send, args=(bytes(mutant),)))
    for begin in range(0, len(threads), NUM_AT_ONCE):
        for thread in threads[begin : begin + NUM_AT_ONCE]:
            thread.start()
        for thread in threads[begin : begin + NUM_AT_ONCE]:
            thread.join(IN_TIME_S)
            assert not thread.is_alive()
    assert len(answers) == NUM_RANDOM
    assert {answer for answer in answers if answer >= 500 or answer == 101} == set()
    assert_alive(hasty_server, num_tries=20)


def test_what_comes_behind_an_answer_that_ends_the_connection_is_not_done(
    server: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    served = Edge._exchange

    async def watched(self: Edge, scope: Any, *others: Any) -> None:
        done.append(scope["path"])
        await served(self, scope, *others)

    monkeypatch.setattr(Edge, "_exchange", watched)
    answer = exchange(server, b"POST /elsewhere HTTP/1.1\r\n" + EXPECTING + b"\r\n" + BODY + GOOD)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"404"]
    assert_alive(server)
    assert done == ["/elsewhere", "/plain/generate"]
