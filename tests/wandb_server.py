"""A W&B service on this machine that holds one artifact: as much of its GraphQL and its files as the client needs to download it."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import Any

from serving import Serving, sent


class Service(Serving):
    """Serves `files` as `me/pipeline/tiny:best` while it is entered; what is in `sent` goes out in place of a file's own bytes.

    `status` is that of every answer. `asked` is what was asked for, in order: queries and files.
    """

    def __init__(self, files: Mapping[str, bytes], *, sent: Mapping[str, bytes] = MappingProxyType({}), status: int = 200) -> None:
        super().__init__(_Answer)
        self.files, self.sent, self.status = files, sent, status
        self.asked: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """Sends a client here, with what it takes for a key."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": "0" * 40}

    def file(self, path: str) -> bytes:
        if path == "manifest":
            return json.dumps(self.manifest()).encode()
        return self.sent.get(path, self.files[path])

    def manifest(self) -> dict[str, Any]:
        """The artifact's list of files: for each its size and its MD5 in base 64."""
        contents = {
            name: {"digest": base64.b64encode(hashlib.md5(content).digest()).decode(), "size": len(content)}
            for name, content in self.files.items()
        }
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        return {"version": 1, **policy, "contents": contents}

    def data(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to the query of that name, with the fields that the client's asks for."""
        match query:
            case "ArtifactMembershipByName":
                known = (variables["entity"], variables["project"], variables["name"]) == ("me", "pipeline", "tiny:best")
                return {"project": {"artifactCollectionMembership": self._membership() if known else None}}
            case "FetchArtifactManifest":
                return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.address}/manifest"}}}}
            case "GetArtifactMembershipFileUrls":
                nodes = [{"__typename": "File", "name": name, "directUrl": f"{self.address}/{name}"} for name in self.files]
                page = {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": node} for node in nodes]}
                return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}}}
            case _:  # whose the key is; what the service can do
                return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}, "serverInfo": None}

    def _membership(self) -> dict[str, Any]:
        project = {"id": "1", "internalId": "1", "name": "pipeline", "entity": {"name": "me"}}
        collection = {"__typename": "ArtifactSequence", "name": "tiny", "project": project}
        artifact = {
            "id": "1",
            "artifactSequence": collection,
            "artifactType": {"name": "model"},
            "versionIndex": 0,
            "state": "COMMITTED",
            "digest": "",
            "size": sum(map(len, self.files.values())),
            "fileCount": len(self.files),
            "createdAt": "2025-01-01T00:00:00Z",
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
        }
        unknown = dict.fromkeys(["description", "metadata", "historyStep", "commitHash", "updatedAt"])
        membership = {"id": "1", "versionIndex": 0, "createdAt": artifact["createdAt"], "aliases": []}
        return {**membership, "artifactCollection": collection, "artifact": {**artifact, **unknown}}


class _Answer(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        """A query, whose name stands at its beginning; what else the client has to tell is not wanted."""
        if self.path != "/graphql":
            self.send_error(404)
            return
        asked = json.loads(sent(self))
        query = re.findall(r"\w+", asked["query"])[1]
        self._send(query, json.dumps({"data": self.server.data(query, asked.get("variables") or {})}).encode())

    def do_GET(self) -> None:
        path = self.path.removeprefix("/")
        self._send(path, self.server.file(path))

    def _send(self, asked: str, content: bytes) -> None:
        self.server.asked.append(asked)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...
