"""What a W&B service keeps of what it is told, and its answers to the client's queries (wandb 0.31).

The query `UpsertBucket` is answered by `Store.query_upsert_bucket`; a kind of its own can have more of them.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ENTITY = "me"
ORGANISATION = "us"  # which owns the registries
Variables = Mapping[str, Any]
Answer = dict[str, Any]


@dataclass
class Run:
    """A run by its id; `told` is the last value of each of its fields, as displayName, groupName, jobType, tags, sweep."""

    name: str
    project: str
    told: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # name -> {"value": value}
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # a line for each that came, in order
    files: dict[str, bytes] = field(default_factory=dict)
    used: list["Artifact"] = field(default_factory=list)
    exit_code: int | None = None


@dataclass
class Artifact:
    """One version of an artifact; `name` has no version in it."""

    id: str
    name: str
    kind: str
    project: str
    run: str
    version: int
    aliases: list[str]
    metadata: dict[str, Any]
    digest: str
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)  # of references, there is nothing but this
    state: str = "PENDING"

    def contents(self) -> dict[str, bytes]:
        """Of each file in the manifest what was uploaded, found by its digest."""
        stored = {_md5(content): content for content in self.files.values()}
        return {name: stored[entry["digest"]] for name, entry in self.manifest["contents"].items() if entry["digest"] in stored}


class Store:
    """Everything that was told, in order; `address` is where files are to be brought."""

    def __init__(self) -> None:
        self.address = ""
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.links: dict[str, list[Artifact]] = {}  # project/name of a registry -> what it was linked to, in order
        self.unknown: list[str] = []  # queries that there is no answer to

    def put(self, name: str, files: Mapping[str, bytes], *, alias: str = "best", project: str = "pipeline") -> Artifact:
        """An artifact that is there already."""
        digest = hashlib.md5(repr(files).encode()).hexdigest()
        made = Artifact(str(len(self.artifacts)), name, "model", project, "", 0, [alias], {}, digest, dict(files), state="COMMITTED")
        contents = {path: {"digest": _md5(content), "size": len(content)} for path, content in files.items()}
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        made.manifest = {"version": 1, **policy, "contents": contents}
        self.artifacts.append(made)
        return made

    def find(self, name: str, project: str = "") -> Artifact | None:
        """The committed artifact that `name:alias` or `name:v<n>` means, in `project` or in any."""
        name, _, alias = name.partition(":")
        named = [a for a in self.artifacts if a.name == name and project in ("", a.project) and a.state == "COMMITTED"]
        known = [a for a in named if alias in (*a.aliases, f"v{a.version}")]
        return known[-1] if known else None

    def answer(self, query: str, variables: Variables) -> Answer:
        """What a query of that name is sent back."""
        method = getattr(self, "query_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", query).lower(), None)
        if method is None:
            self.unknown.append(query)
            return {"errors": [{"message": f"nothing is known of {query}"}]}
        return {"data": method(variables)}

    def query_viewer(self, _: Variables) -> Answer:
        return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}}

    def query_get_default_entity(self, _: Variables) -> Answer:
        return self.query_viewer({})

    def query_organization_core_weave_organization_id(self, _: Variables) -> Answer:
        return {"entity": {"organization": None}}

    def query_server_features_query(self, _: Variables) -> Answer:
        return {"serverInfo": None, **self.query_viewer({})}

    def query_upsert_bucket(self, v: Variables) -> Answer:
        name, project = v["name"] or v["id"], v["project"] or "uncategorized"
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, project))
        run.told |= {key: value for key, value in v.items() if value is not None}
        run.config |= _json(v["config"])
        run.summary |= _json(v["summaryMetrics"])
        facts = {"description": None, "sweepName": v["sweep"], "project": _project(project)}
        bucket = {"id": name, "name": name, "displayName": run.told.get("displayName", name), "config": json.dumps(run.config), **facts}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run.history)}, "inserted": new}}

    def query_run_resume_status(self, v: Variables) -> Answer:
        run = self.runs.get(v["name"])
        bucket = run and {
            "id": run.name,
            "name": run.name,
            "displayName": run.told.get("displayName", run.name),
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.told.get("tags", []),
            "notes": run.told.get("notes"),
            "wandbConfig": '{"t": {"1": []}}',
        }
        return {"model": {**_project(v["project"]), "bucket": bucket}}

    def query_create_run_files(self, v: Variables) -> Answer:
        nodes = [{"name": name, "uploadUrl": f"{self.address}/runs/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": nodes}}

    def query_artifact_type(self, v: Variables) -> Answer:
        found = self.find(v["name"])
        return {"project": {"artifact": found and {"artifactType": {"name": found.kind}}}}

    def query_create_artifact(self, v: Variables) -> Answer:
        told = v["input"]
        name = told["artifactCollectionName"] if "artifactCollectionName" in told else told["artifactCollectionNames"][0]
        version = sum((a.name, a.project) == (name, told["projectName"]) for a in self.artifacts)
        aliases = [alias["alias"] for alias in told.get("aliases") or []]
        made = Artifact(
            str(len(self.artifacts)), name, told["artifactTypeName"], told["projectName"], told.get("runName") or "", version, aliases,
            _json(told.get("metadata")), told["digest"],
        )  # fmt: skip
        known = next(
            (a for a in self.artifacts if a.project == made.project and (a.name, a.digest, a.state) == (name, made.digest, "COMMITTED")),
            None,
        )
        if known is None:
            self.artifacts.append(made)
        else:
            self._give(known, aliases)
        sequence = {"id": name, "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": (known or made).id, "state": (known or made).state, "artifactSequence": sequence}}}

    def query_create_artifact_manifest(self, v: Variables) -> Answer:
        file = {"id": "1", "uploadUrl": f"{self.address}/manifests/{v['artifactID']}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def query_update_artifact_manifest(self, v: Variables) -> Answer:
        made = self.query_create_artifact_manifest({"artifactID": v["artifactManifestID"]})
        return {"updateArtifactManifest": made["createArtifactManifest"]}

    def query_create_artifact_files(self, v: Variables) -> Answer:
        nodes = [
            {
                "storagePath": file["name"],
                "uploadUrl": f"{self.address}/artifacts/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in v["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def query_commit_artifact(self, v: Variables) -> Answer:
        made = self.artifacts[int(v["artifactID"])]
        made.state = "COMMITTED"
        self._give(made, made.aliases)
        return {"commitArtifact": {"artifact": {"id": made.id, "digest": made.digest}}}

    def _give(self, artifact: Artifact, aliases: Iterable[str]) -> None:
        """The latest that is given an alias has it, and no other of its name."""
        wanted = {*aliases, "latest"}
        for other in (a for a in self.artifacts if (a.name, a.project) == (artifact.name, artifact.project)):
            other.aliases = [alias for alias in other.aliases if alias not in wanted]
        artifact.aliases += sorted(wanted)

    def query_use_artifact(self, v: Variables) -> Answer:
        used = self.artifacts[int(v.get("input", v)["artifactID"])]
        self.runs[v.get("input", v)["runName"]].used.append(used)
        return {"useArtifact": {"artifact": _membership(used)["artifact"]}}

    def query_fetch_org_info_from_entity(self, _: Variables) -> Answer:
        return {"entity": {"organization": {"name": ORGANISATION, "orgEntity": {"name": ORGANISATION}}, "user": None}}

    def query_link_artifact(self, v: Variables) -> Answer:
        """The same artifact is linked to once."""
        told = v["input"]
        linked = self.links.setdefault(f"{told['projectName']}/{told['artifactPortfolioName']}", [])
        made = self.artifacts[int(told["artifactID"])]
        if made not in linked:
            linked.append(made)
        return {"result": {"versionIndex": linked.index(made)}}

    def query_artifact_membership_by_name(self, v: Variables) -> Answer:
        if v["entity"] == ORGANISATION:
            name, _, alias = v["name"].partition(":")
            linked = self.links.get(f"{v['project']}/{name}", [])
            last = len(linked) - 1 if alias == "latest" else int(alias.removeprefix("v"))
            return {"project": {"artifactCollectionMembership": _link(linked[last], last, v["project"], name) if linked else None}}
        found = self.find(v["name"], v["project"]) if v["entity"] == ENTITY else None
        return {"project": {"artifactCollectionMembership": _membership(found) if found else None}}

    def query_artifact_by_id(self, v: Variables) -> Answer:
        return {"artifact": _membership(self.artifacts[int(v["id"])])["artifact"]}

    def query_fetch_artifact_manifest(self, v: Variables) -> Answer:
        return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.address}/manifests/{v['id']}"}}}}

    def query_get_artifact_membership_file_urls(self, v: Variables) -> Answer:
        found = self.find(f"{v['collection']}:{v['alias']}")
        urls = {name: f"{self.address}/artifacts/{found.id}/{name}" for name in found.manifest["contents"]} if found else {}
        nodes = [{"__typename": "File", "name": name, "directUrl": url} for name, url in urls.items()]
        page = {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": node} for node in nodes]}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}}}


def _json(text: str | None) -> dict[str, Any]:
    return dict(json.loads(text or "{}") or {})


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def _project(name: str, entity: str = ENTITY) -> Answer:
    return {"id": "1", "internalId": "1", "name": name, "entity": {"id": "1", "name": entity}}


def _link(artifact: Artifact, version: int, project: str, name: str) -> Answer:
    collection = {"__typename": "ArtifactPortfolio", "name": name, "project": _project(project, ORGANISATION)}
    return {**_membership(artifact), "versionIndex": version, "artifactCollection": collection}


def _membership(artifact: Artifact) -> Answer:
    collection = {"__typename": "ArtifactSequence", "name": artifact.name, "project": _project(artifact.project)}
    aliases = [{"id": alias, "alias": alias, "artifactCollection": collection} for alias in artifact.aliases]
    facts = {
        "id": artifact.id,
        "artifactSequence": collection,
        "artifactType": {"name": artifact.kind},
        "versionIndex": artifact.version,
        "metadata": json.dumps(artifact.metadata),
        "state": artifact.state,
        "digest": artifact.digest,
        "size": sum(entry["size"] for entry in artifact.manifest["contents"].values()),
        "fileCount": len(artifact.manifest["contents"]),
        "createdAt": "2025-01-01T00:00:00Z",
        "ttlDurationSeconds": -1,
        "ttlIsInherited": True,
        "tags": [],
        "aliases": aliases,
        **dict.fromkeys(["description", "historyStep", "commitHash", "updatedAt"]),
    }
    version = {"id": artifact.id, "versionIndex": artifact.version, "createdAt": facts["createdAt"], "aliases": aliases}
    return {**version, "artifactCollection": collection, "artifact": facts}
