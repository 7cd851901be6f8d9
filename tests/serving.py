"""What every server of the tests does: it answers on this machine, and only while it is entered."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Serving(ThreadingHTTPServer):
    """Serves at `address` until it is left. An answer that waits ends with `leave`."""

    daemon_threads = True

    def __init__(self, answer: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), answer)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.leave = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client has left
            super().handle_error(request, client_address)


def sent(answer: BaseHTTPRequestHandler) -> bytes:
    """All that came with what was asked, in pieces or not."""
    if answer.headers.get("Transfer-Encoding") == "chunked":
        return b"".join(_pieces(answer))
    return answer.rfile.read(int(answer.headers.get("Content-Length") or 0))


def _pieces(answer: BaseHTTPRequestHandler) -> Iterator[bytes]:
    while size := int(answer.rfile.readline(), 16):
        yield answer.rfile.read(size)
        answer.rfile.readline()
    answer.rfile.readline()
