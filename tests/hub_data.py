"""A Hub on this machine that holds one data set: as much of its interface as `datasets` needs to read one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from web import Answer, Web, well

COMMIT = "c" * 40
REPOSITORY = "me/pictures"


class Hub(Web):
    """Serves `files` as the data set me/pictures; large files are told with their sha256, as the Hub does."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.RequestHandlerClass = _Answer
        self.held = dict(files)

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.address, "HF_HUB_DISABLE_XET": "1"}

    def entry(self, name: str) -> dict[str, Any]:
        content = self.held[name]
        known = hashlib.sha256(content).hexdigest()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = {"oid": known, "size": len(content), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(content), "oid": oid, "lfs": large}

    def said(self, path: str, body: bytes, recursive: bool) -> Any:
        """The answer to a question of the interface; None if there is none."""
        if path.startswith(tree := f"/api/datasets/{REPOSITORY}/tree/{COMMIT}"):
            return self._tree(path.removeprefix(tree).strip("/"), recursive)
        if path.startswith(f"/api/datasets/{REPOSITORY}/paths-info/"):
            wanted = parse_qs(body.decode())["paths"]
            return [self.entry(name) for name in wanted if name in self.held]
        if path in (f"/api/datasets/{REPOSITORY}", *(f"/api/datasets/{REPOSITORY}/revision/{r}" for r in ("main", COMMIT))):
            siblings = [{"rfilename": name} for name in self.held]
            return {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "private": False, "gated": False, "disabled": False, "tags": []}
        return None

    def _tree(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        """What is in a folder, or in those below it, too."""
        inside = [name for name in self.held if not below or name.startswith(f"{below}/")]
        here = [name for name in inside if recursive or name.count("/") == (below.count("/") + 1 if below else 0)]
        folders = {name.rpartition("/")[0] for name in inside if name not in here}
        return [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in sorted(folders)] + [self.entry(name) for name in here]


class _Answer(Answer):
    server: Hub

    def answer(self) -> None:
        asked = urlsplit(self.path)
        path = unquote(asked.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((f"{self.command} {path}", self.headers.get("Range")))
        prefix, _, name = path.partition(f"/{REPOSITORY}/resolve/")
        name = name.partition("/")[2]
        if prefix == "/datasets" and name:
            self._file(path, name)
        elif (said := self.server.said(path, body, "recursive=true" in asked.query.lower())) is not None:
            content = json.dumps(said).encode()
            self.begin(200, Content_Type="application/json", Content_Length=len(content))
            self.wfile.write(content)
        else:
            self.begin(404, X_Error_Code="RepoNotFound", Content_Length=0)

    def _file(self, path: str, name: str) -> None:
        if name not in self.server.held:
            self.begin(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT, Content_Length=0)
            return
        content = self.server.held[name]
        if self.command == "HEAD":
            known = self.server.entry(name)["lfs"]["oid"]
            self.begin(200, Content_Length=len(content), ETag=f'"{known}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
            return
        ways = self.server.ways.get(f"/{name}", [])
        (ways.pop(0) if ways else well)(self, content)
