"""A W&B service that is well until a moment of a run, and then is not."""

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

from wandb_service import STREAM, Service, name_of

MOMENTS = ("start", "log", "artifact", "finish")
BYTE = 0.3  # seconds for one, of a service that is slow
Strike = Callable[["Unwell", Any], bool]  # given what is to answer: whether that is done


class Unwell(Service):
    """From the first thing on that the client asks at `moment`, `fault` is what becomes of everything that it asks.

    A service with the fault "disk full" is well; `fill` is called in that moment.
    """

    def __init__(self, fault: str, moment: str, fill: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.fault, self.moment, self.fill = fault, moment, fill
        self.struck, self.over = threading.Event(), threading.Event()
        self.connections: list[socket.socket] = []

    def __enter__(self) -> "Unwell":
        super().__enter__()
        if self.fault == "closed port" and self.moment == "start":
            self.struck.set()
            self.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.close()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def meets(self, answer: Any, content: bytes) -> bool:
        with self.one_by_one:
            if not self.struck.is_set():
                if not _reached(self.moment, answer.path, content):
                    return False
                self.struck.set()
                if self.fill:
                    self.fill()
        return FAULTS[self.fault](self, answer)

    def close(self) -> None:
        """Nobody listens any more, and no connection stays."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # the client has left
                connection.shutdown(socket.SHUT_RDWR)


def _reached(moment: str, path: str, content: bytes) -> bool:
    """Whether something that is asked belongs to `moment`: the upload of the summary is the first at the finish."""
    streams = re.fullmatch(STREAM, path) is not None
    asked = json.loads(content) if path == "/graphql" or streams else {}
    query = name_of(asked["query"]) if path == "/graphql" else ""
    return {
        "start": True,
        "log": "wandb-history.jsonl" in (asked.get("files") or {}) if streams else False,
        "artifact": query in ("ArtifactType", "CreateArtifact"),
        "finish": "complete" in asked if streams else query == "CreateRunFiles" and "wandb-summary.json" in asked["variables"]["files"],
    }[moment]


def _hangs(service: Unwell, answer: Any) -> bool:
    service.over.wait()
    answer.close_connection = True
    return True


def _closes(service: Unwell, answer: Any) -> bool:
    service.close()
    answer.close_connection = True
    return True


def _dies(service: Unwell, answer: Any) -> bool:
    """In the middle of what it says."""
    answer.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    return _closes(service, answer)


def _refuses(status: int) -> Strike:
    def refuse(service: Unwell, answer: Any) -> bool:
        _send(answer, status, json.dumps({"errors": [{"message": answer.responses[status][0]}]}).encode())
        return True

    return refuse


def _babbles(service: Unwell, answer: Any) -> bool:
    _send(answer, 200, os.urandom(1000))
    return True


def _drips(service: Unwell, answer: Any) -> bool:
    answer.wfile = _Slowly(answer.wfile, service.over)
    return False


def _send(answer: Any, status: int, content: bytes) -> None:
    answer.send_response(status)
    answer.send_header("Content-Length", str(len(content)))
    answer.end_headers()
    answer.wfile.write(content)


class _Slowly:
    """A file to which bytes go one by one, until `over`."""

    def __init__(self, file: Any, over: threading.Event) -> None:
        self._file, self._over, self.flush, self.close, self.closed = file, over, file.flush, file.close, False

    def write(self, content: bytes) -> None:
        for number in range(len(content)):
            if self._over.wait(BYTE):
                return
            self._file.write(content[number : number + 1])


FAULTS: dict[str, Strike] = {
    "closed port": _closes,
    "hang": _hangs,
    "401": _refuses(401),
    "403": _refuses(403),
    "429": _refuses(429),
    "500": _refuses(500),
    "junk": _babbles,
    "slow": _drips,
    "dying": _dies,
    "disk full": lambda service, answer: False,
}
