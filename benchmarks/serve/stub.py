"""A listener that refuses every request as cheaply as a process can: what it costs to be asked at all.

    python -m benchmarks.serve.stub

Prints its port. Reads what has come, answers 429 and closes in one packet; knows nothing of HTTP.
"""

from __future__ import annotations

import socket

_ANSWER = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.send(_ANSWER, socket.MSG_MORE)


if __name__ == "__main__":
    main()
