"""The board's server: it reads, and changes nothing; what it gives out is the page, and what known runs have told of themselves.

/                                the page, with /page.js, /page.css and /plotly.min.js
/api/runs                        all runs, as `pipeline runs --json` has them
/api/curves?run=NAME&x=AXIS      the settings of a run, and its curves against steps, epochs or seconds
/files/NAME/metrics.jsonl        its journal
/files/NAME/report/FILE          its report, and the pictures beside it
"""

import contextlib
import json
import signal
import socketserver
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline import reading
from pipeline.board.curves import Curves
from pipeline.errors import ConfigError, PipelineError
from pipeline.runs import Run, Runs, configuration, flat, read
from pipeline.runtime import addresses
from pipeline.runtime.console import say
from pipeline.runtime.foreign import of_artifact
from pipeline.runtime.signals import STOP_SIGNALS

PORTS = range(8765, 8865)  # tried in turn where none is asked for
POINTS = 20_000_000  # of curves that are kept in memory, 16 bytes each
HERE = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, no script in the page; plotly sets styles of its own.
PAGE = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'"
# A report holds its own scripts. It is kept apart: in an origin of its own, from which it can ask for nothing.
REPORT = (
    "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:"
)
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Board:
    """What there is to show of the runs in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, Run] = {}
        self._curves: OrderedDict[Path, Curves] = OrderedDict()

    def runs(self) -> Runs:
        found = read(self.folder)
        self._known = {run.name: run for run in found.found}
        return found

    def run(self, name: str) -> Run | None:
        if name not in self._known:
            self.runs()
        return self._known.get(name)

    def curves(self, run: Run, axis: str) -> dict[str, Any]:
        settings = {key: value for key, value in flat(configuration(run.path)).items() if key not in ("run.name", "run.folder")}
        journal = of_artifact(run.path / "metrics.jsonl", "train")
        shown = self._of(journal.parent).shown(run, axis) if journal else {"series": {}, "starts": []}
        return {"name": run.name, "settings": settings, **shown}

    def _of(self, training: Path) -> Curves:
        with self._lock:
            found = self._curves.setdefault(training, Curves(training))
            self._curves.move_to_end(training)
            while len(self._curves) > 1 and sum(curves.points for curves in self._curves.values()) > POINTS:
                self._curves.popitem(last=False)
        return found


class Server(ThreadingHTTPServer):
    def __init__(self, board: Board, host: str, port: int) -> None:
        self.board, self.host = board, host
        self.address_family = addresses.family(host)
        super().__init__((host, port), Answer)

    def server_bind(self) -> None:
        """As the class above, but without asking for the host's name in the net, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):  # who has left need not be told of
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return addresses.url(self.host, self.server_port)


class Answer(BaseHTTPRequestHandler):
    server: Server
    protocol_version, server_version, sys_version = "HTTP/1.1", "pipeline", ""
    timeout = 60  # seconds

    def do_GET(self) -> None:
        try:
            asked = urlsplit(self.path)
            known = addresses.is_ours(self.headers.get("Host", ""), self.server.host)
        except ValueError:
            return self._refuse(HTTPStatus.BAD_REQUEST)
        if not known:
            return self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this is no name of the board's machine; use localhost, or its address")
        try:
            return self._answer(unquote(asked.path), {key: values[-1] for key, values in parse_qs(asked.query).items()})
        except (OSError, ValueError, OverflowError, RecursionError) as error:  # whatever somebody may have put there
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            self.close_connection = True  # if it was in the middle of an answer
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """For the library, of what is no request, as plain text."""
        self.close_connection = True
        self._refuse(HTTPStatus(code))

    def _refuse_method(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)  # whatever was sent with it is not read

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method  # noqa: N815

    def _answer(self, path: str, asked: Mapping[str, str]) -> None:
        board = self.server.board
        if path in ("/", "/page.js", "/page.css"):
            return self._file(HERE / (path[1:] or "page.html"), PAGE)
        if path == "/plotly.min.js":
            return self._file(plotly(), PAGE)
        if path == "/api/runs":
            runs = board.runs()
            shown = [run.facts() for run in runs.found]
            return self._json({"folder": str(board.folder), "runs": shown, "left_out": list(runs.left_out)})
        if path == "/api/curves" and (run := board.run(asked.get("run", ""))):
            return self._json(board.curves(run, asked.get("x", "step")))
        if path.startswith("/files/") and (found := self._of_a_run(path.removeprefix("/files/"))):
            return self._file(found, REPORT)
        return self._refuse(HTTPStatus.NOT_FOUND)

    def _of_a_run(self, path: str) -> Path | None:
        """The file of a known run at `path`, if it is one to be shown, and lies where the pipeline has put it."""
        name, _, file = path.rpartition("/")
        if file == "metrics.jsonl" and (run := self.server.board.run(name)):
            return of_artifact(run.path / file, "train")
        run = self.server.board.run(name.removesuffix("/report")) if name.endswith("/report") else None
        report = of_artifact(run.path / "report", "evaluate") if run else None
        found = report / file if report and file in {entry.name for entry in report.iterdir()} else None
        return found if found and found.suffix in KINDS and found.is_file() and not found.is_symlink() else None

    def _json(self, value: Any) -> None:
        self._head(HTTPStatus.OK, ".json", len(body := json.dumps(value, allow_nan=False).encode()), PAGE)
        self.wfile.write(body)

    def _file(self, path: Path, policy: str) -> None:
        with reading.opened(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            self._head(HTTPStatus.OK, path.suffix, size, policy)
            if size:
                self.connection.sendfile(file, count=size)  # and no more, should it be growing

    def _refuse(self, status: HTTPStatus, why: str = "") -> None:
        body = f"{status.value} {why or status.phrase}\n".encode()
        self._head(status, ".txt", len(body), PAGE)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, size: int, policy: str) -> None:
        self.send_response(status)
        own = {"Content-Type": KINDS.get(kind, "text/plain; charset=utf-8"), "Content-Length": str(size)}
        own["Content-Security-Policy"] = f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        for name, value in {**own, **ALWAYS}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """The terminal is for people."""


def plotly() -> Path:
    """Where plotly's script is; without the import of plotly, which takes a second.

    Raises:
        PipelineError: it is not installed.
    """
    found = find_spec("plotly")
    path = Path(found.origin or "").parent / "package_data" / "plotly.min.js" if found else None
    if path is None or not path.is_file():
        raise PipelineError("the board draws with plotly, which is not installed; ./setup installs it")
    return path


def serve(folder: Path, host: str, port: int | None) -> None:
    """Show the runs in `folder` until a signal comes.

    Raises:
        ConfigError: there is no such folder; or the port is taken, or the host not ours.
        PipelineError: plotly is not installed.
    """
    plotly()
    board = Board(folder)
    board.runs()
    with _opened(board, host, port) as server:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            say(f"board of {folder}: {server.url}  (Ctrl-C ends it)")
            if host in addresses.PUBLIC:
                say("whoever reaches this machine can read it")
            server.serve_forever()
    say("board: ended")


def _opened(board: Board, host: str, port: int | None) -> Server:
    why = OSError()
    for tried in PORTS if port is None else [port]:
        try:
            return Server(board, host, tried)
        except OSError as error:
            why = error
    where = f"{host}:{PORTS[0]}" if port is None else f"{host}:{port}"
    raise ConfigError(f"board: {where}: {why.strerror or why}; choose another --port or --host")
