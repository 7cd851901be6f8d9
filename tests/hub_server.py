"""A Hugging Face Hub on this machine: as much of its HTTP as the real client (huggingface_hub 2.4) needs to fill and read it.

Large files come by LFS's basic transfer, all others inside the commit.
"""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import yaml
from serving import Serving, sent

TOKEN = "hf_" + "0" * 34
LARGE = (".safetensors", ".onnx", ".pt2", ".bin")

Answer = tuple[int, Any]  # status; JSON, or bytes


@dataclass
class Repository:
    """`files` are those of the last of `commits`; of those in `large`, LFS has the content."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    large: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=lambda: [hashlib.sha1(b"initial").hexdigest()])
    ignored: tuple[str, ...] = ()  # names that its .gitignore holds

    def oid(self, name: str) -> str:
        """As the Hub tells it before an upload: sha256 of a large file, else git's."""
        return sha256(self.files[name]) if name in self.large else git_name(self.files[name])


class Hub(Serving):
    """Serves and keeps while it is entered. `asked` is every method and path, in order; `heard` all that came, but for the token.

    A request whose path holds a key of `fails` is answered by that status, by nothing for `hang`, or cut off for `cut`.
    """

    def __init__(self, fails: Mapping[str, int | str] = MappingProxyType({})) -> None:
        super().__init__(_Handler)
        self.fails = fails
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # by sha256
        self.asked: list[str] = []
        self.heard: list[bytes] = []

    def environment(self, home: object) -> dict[str, str]:
        """Sends a client here, with a token, and what it keeps below `home`."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}

    def count(self, what: str) -> int:
        return sum(what in line for line in self.asked)

    def post_validate_yaml(self, content: bytes) -> Answer:
        try:
            head = yaml.safe_load(json.loads(content)["content"].split("---")[1])
        except (yaml.YAMLError, IndexError) as error:
            return 400, {"errors": [{"message": f"no metadata: {error}"}], "warnings": []}
        understood = isinstance(head, dict) and isinstance(head.get("library_name", ""), str)
        wrong = [] if understood else [{"message": '"library_name" must be a string'}]
        return (400 if wrong else 200), {"errors": wrong, "warnings": []}

    def post_create(self, content: bytes) -> Answer:
        told = json.loads(content)
        name = f"{told['organization']}/{told['name']}"
        known = name in self.repositories
        self.repositories.setdefault(name, Repository(private=told.get("visibility") == "private"))
        url = {"url": f"{self.address}/{name}"}
        return (409, {"error": "You already created this model repo", **url}) if known else (200, url)

    def get_model(self, content: bytes, name: str) -> Answer:
        repository = self.repositories[name]
        siblings: list[dict[str, Any]] = [{"rfilename": path, **self._facts(repository, path)} for path in repository.files]
        return 200, {"id": name, "sha": repository.commits[-1], "private": repository.private, "siblings": siblings}

    def get_tree(self, content: bytes, name: str) -> Answer:
        repository = self.repositories[name]
        return 200, [{"type": "file", "path": path, **self._facts(repository, path)} for path in repository.files]

    def _facts(self, repository: Repository, path: str) -> dict[str, Any]:
        content = repository.files[path]
        oid = git_name(content)
        lfs = {"size": len(content), "sha256": sha256(content), "oid": sha256(content), "pointerSize": 134}
        return {"size": len(content), "blobId": oid, "oid": oid, **({"lfs": lfs} if path in repository.large else {})}

    def post_preupload(self, content: bytes, name: str) -> Answer:
        repository = self.repositories[name]
        told = [file["path"] for file in json.loads(content)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in told}
        known = {path: repository.oid(path) for path in told if path in repository.files}
        answers = [{"path": p, "uploadMode": modes[p], "shouldIgnore": p in repository.ignored, "oid": known.get(p)} for p in told]
        return 200, {"files": answers}

    def post_batch(self, content: bytes, name: str) -> Answer:
        objects = json.loads(content)["objects"]
        for wanted in (wanted for wanted in objects if wanted["oid"] not in self.stored):
            verify = {"href": f"{self.address}/lfs/verify"}
            wanted["actions"] = {"upload": {"href": f"{self.address}/lfs/{wanted['oid']}"}, "verify": verify}
        return 200, {"transfer": "basic", "objects": objects}

    def put_lfs(self, content: bytes, oid: str) -> Answer:
        if sha256(content) != oid:
            return 400, {"error": "the content is another"}
        self.stored[oid] = content
        return 200, {}

    def post_verify(self, content: bytes) -> Answer:
        return (200 if json.loads(content)["oid"] in self.stored else 404), {}

    def post_commit(self, content: bytes, name: str) -> Answer:
        repository = self.repositories[name]
        for told in map(json.loads, content.splitlines()):
            value = told["value"]
            if told["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                repository.files[value["path"]] = self.stored[value["oid"]]
                repository.large.add(value["path"])
        repository.commits.append(hashlib.sha1(content).hexdigest())
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{repository.commits[-1]}", "commitOid": repository.commits[-1]}

    def get_resolve(self, content: bytes, name: str, path: str) -> Answer:
        return 200, self.repositories[name].files[path]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([^/]+/[^/]+)"
ROUTES: dict[str, Callable[..., Answer]] = {
    "POST /api/validate-yaml": Hub.post_validate_yaml,
    "POST /api/repos/create": Hub.post_create,
    rf"GET /api/models/{NAME}(?:/revision/\w+)?": Hub.get_model,
    rf"GET /api/models/{NAME}/tree/\w+": Hub.get_tree,
    rf"POST /api/models/{NAME}/preupload/main": Hub.post_preupload,
    rf"POST /api/models/{NAME}/commit/main": Hub.post_commit,
    rf"POST /{NAME}\.git/info/lfs/objects/batch": Hub.post_batch,
    "POST /lfs/verify": Hub.post_verify,
    r"PUT /lfs/(\w+)": Hub.put_lfs,
    rf"(?:GET|HEAD) /{NAME}/resolve/\w+/(.+)": Hub.get_resolve,
}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        hub, asked = self.server, f"{self.command} {urlsplit(self.path).path}"
        trouble = next((how for what, how in hub.fails.items() if what in asked), None)
        if trouble == "cut":
            self.rfile.read(1000)
            self.connection.close()
            return
        content = sent(self)
        hub.asked.append(asked)
        headers = "".join(f"{name}: {value}\n" for name, value in self.headers.items() if name.lower() != "authorization")
        hub.heard += [asked.encode(), headers.encode(), content]
        if trouble == "hang":
            hub.leave.wait()
            return
        found = [(function, match.groups()) for form, function in ROUTES.items() if (match := re.fullmatch(form, asked))]
        status, answer = 404, {"error": "Not Found"}
        if isinstance(trouble, int):
            status, answer = trouble, {"error": "it is\n so\x1b"}
        elif found:
            (function, words), *_ = found
            with contextlib.suppress(KeyError):  # there is no such thing
                status, answer = function(hub, content, *words)
        self._send(status, answer)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _send(self, status: int, answer: Any) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(answer, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha256(content)}"')
        if commit := re.search(r"/resolve/([0-9a-f]{40})/", self.path):
            self.send_header("X-Repo-Commit", commit[1])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...
