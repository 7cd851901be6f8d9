"""A W&B service on this machine: as much of its HTTP as the real client (wandb 0.31) needs to tell it of a run, and to fetch artifacts."""

import contextlib
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler

from serving import Serving, sent
from wandb_store import Store

KEY = "0" * 40
STREAM = r"/files/[^/]+/[^/]+/([^/]+)/file_stream"  # of a run


class Service(Serving):
    """Serves and keeps while it is entered; what it was sent is in `store`. `asked` is every query and path, in order."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__(_Answer)
        self.store = store or Store()
        self.store.address = self.address
        self.asked: list[str] = []
        self.one_by_one = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """Sends a client here, with what it takes for a key."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def meets(self, answer: "_Answer", content: bytes) -> bool:
        """Whether what was asked has met with something else than its answer."""
        return False

    def query(self, content: bytes) -> bytes:
        asked = json.loads(content)
        query = name_of(asked["query"])
        self.asked.append(query)
        return json.dumps(self.store.answer(query, asked.get("variables") or {})).encode()

    def stream(self, name: str, content: bytes) -> bytes:
        """Lines of a run's files; each comes with the number of the first of them, so that one which is sent twice is there once."""
        self.asked.append("file_stream")
        told, run = json.loads(content), self.store.runs[name]
        for file, piece in (told.get("files") or {}).items():
            lines = [json.loads(line) for line in piece["content"]] if file.endswith((".jsonl", ".json")) else piece["content"]
            if file == "wandb-history.jsonl":
                run.history[piece["offset"] :] = lines
            elif file == "wandb-summary.json":
                run.summary |= lines[-1]
        if told.get("complete"):
            run.exit_code = told["exitcode"]
        return b'{"exitcode": null, "limits": {}}'

    def take(self, path: str, content: bytes) -> None:
        """A file that was brought to where `Store` has told."""
        self.asked.append(path)
        _, kind, owner, name = (*path.split("/", 3), "")[:4]
        if kind == "runs":
            self.store.runs[owner].files[name] = content
        elif kind == "artifacts":
            self.store.artifacts[int(owner)].files[name] = content
        else:
            self.store.artifacts[int(owner)].manifest = json.loads(content)

    def give(self, path: str) -> bytes:
        self.asked.append(path)
        _, kind, owner, name = (*path.split("/", 3), "")[:4]
        artifact = self.store.artifacts[int(owner)]
        return json.dumps(artifact.manifest).encode() if kind == "manifests" else artifact.contents()[name]


def name_of(query: str) -> str:
    return str(re.findall(r"\w+", query)[1])


class _Answer(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self._content()
        if self.server.meets(self, content):
            return
        with self.server.one_by_one:
            if self.path == "/graphql":
                answer = self.server.query(content)
            elif found := re.fullmatch(STREAM, self.path):
                answer = self.server.stream(found[1], content)
            else:  # what it has to tell of itself
                answer = b"{}"
        self._send(answer)

    def do_PUT(self) -> None:
        content = self._content()
        if not self.server.meets(self, content):
            with self.server.one_by_one:
                self.server.take(self.path, content)
            self._send(b"")

    def do_GET(self) -> None:
        if not self.server.meets(self, b""):
            with self.server.one_by_one:
                content = self.server.give(self.path)
            self._send(content)

    def _content(self) -> bytes:
        content = sent(self)
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _send(self, content: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...
