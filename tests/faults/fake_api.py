"""A strict API server in memory, for faults that a real one does not offer.

It keeps what the operator relies on: one growing resource version, optimistic concurrency, preconditions, server-side
apply with owners, an isolated status subresource, generations, finalizers, label selectors, owners' garbage
collection, immutable fields and unique names of Service ports. `tests/cluster/test_operator_fake_api.py` runs one
script against it and against the real server and compares the answers.
"""

from __future__ import annotations

import itertools
import json
import marshal
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from faults.apply_semantics import Json, Path, leaves, merge, merge_patch, read, remove

from multimodal_operator.kinds import KINDS, Kind
from multimodal_operator.kube import Answer

WITH_STATUS = {"multimodaldeployments", "deployments", "jobs", "persistentvolumeclaims", "pods", "services"}
IMMUTABLE: dict[str, tuple[Path, ...]] = {
    "persistentvolumeclaims": (("spec", "accessModes"), ("spec", "storageClassName")),
    "deployments": (("spec", "selector"),),
    "jobs": (("spec", "template"), ("spec", "selector")),
}
Address = tuple[str, str, str]
"""Plural, namespace, name."""
Watcher = Callable[[str, Kind, Json], None]


def clone(obj: Json) -> Json:
    """Copy an object; many times faster than copy.deepcopy, and crash tests copy a lot."""
    copied: Json = marshal.loads(marshal.dumps(obj))  # noqa: S302 -- of this process
    return copied


class CrashError(BaseException):
    """The operator's process ends here: no handler of `Exception` may see it."""


class RefusedError(Exception):
    """What becomes an HTTP status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code, self.reason, self.message = code, reason, message
        super().__init__(message)


class FakeApi:
    """The server; also a `kube.Transport`."""

    def __init__(self, now: Callable[[], datetime] | None = None) -> None:
        self.now = now or (lambda: datetime.now(UTC))
        self.objects: dict[Address, Json] = {}
        self.owners: dict[Address, dict[str, set[Path]]] = {}
        self.watchers: list[Watcher] = []
        self.calls: list[tuple[str, str, str]] = []
        """Verb, plural and subresource of every call, as an audit log would have them."""
        self.writes = 0
        self.crash_after: int | None = None
        """End the process after this many writes."""
        self.before: Callable[[str, str], None] | None = None
        """Called with method and path before each exchange; may raise."""
        self.quota: set[str] = set()
        """Plurals of which nothing new is admitted."""
        self._version = itertools.count(1)
        self._uid = itertools.count(1)
        self._kinds = {kind.plural: kind for kind in KINDS}

    # The transport

    async def exchange(self, method: str, path: str, *, query: Any, media_type: str, body: bytes | None) -> Answer:
        try:
            if self.before is not None:
                self.before(method, path)
            answer = Answer(200, self.handle(method, path, dict(query), media_type, json.loads(body) if body else None))
        except RefusedError as error:
            return Answer(error.code, {"kind": "Status", "reason": error.reason, "message": error.message})
        if method != "GET":
            self.writes += 1
            if self.crash_after is not None and self.writes >= self.crash_after:
                self.crash_after = None
                raise CrashError
        return answer

    async def close(self) -> None:
        pass

    # Requests

    def handle(self, method: str, path: str, query: dict[str, str], media_type: str, body: Json | None) -> Json:
        kind, namespace, name, subresource = self._route(path)
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
        self.calls.append((verb, kind.plural, subresource))
        if verb == "list":
            return self._list(kind, namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        if verb == "create":
            assert body is not None
            return self._create(kind, namespace, body, query.get("fieldManager", "unknown"))
        address = (kind.plural, namespace, name)
        if verb == "get":
            return clone(self._found(address))
        if verb == "delete":
            return self._delete(address, body or {})
        assert body is not None
        if "apply" in media_type:
            return self._apply(kind, address, body, query, subresource)
        return self._merge(address, body, query, subresource)

    def _route(self, path: str) -> tuple[Kind, str, str, str]:
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        name = parts[1] if len(parts) > 1 else ""
        return self._kinds[parts[0]], namespace, name, parts[2] if len(parts) > 2 else ""

    def _list(self, kind: Kind, namespace: str, selector: str, fields: str) -> Json:
        items = [
            clone(obj)
            for (plural, where, _name), obj in sorted(self.objects.items())
            if plural == kind.plural and namespace in {"", where} and _selected(obj, selector) and _has(obj, fields)
        ]
        return {"items": items, "metadata": {"resourceVersion": str(next(self._version))}}

    def _create(self, kind: Kind, namespace: str, body: Json, manager: str) -> Json:
        name = body["metadata"]["name"]
        address = (kind.plural, namespace, name)
        if address in self.objects:
            raise RefusedError(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
        self._admit(kind)
        obj = self._begin(kind, namespace, body)
        if kind.plural in WITH_STATUS:
            obj.pop("status", None)
        self.owners[address] = {f"{manager}/Update": set(leaves(_owned(obj)))}
        return self._store(address, obj, "ADDED")

    def _apply(self, kind: Kind, address: Address, body: Json, query: dict[str, str], subresource: str) -> Json:
        manager = f"{query['fieldManager']}/Apply/{subresource}"
        live = self.objects.get(address)
        if live is None:
            if subresource:
                raise RefusedError(404, "NotFound", f'{address[0]} "{address[2]}" not found')
            self._admit(kind)
            obj = self._begin(kind, address[1], body)
            obj.pop("status", None)
            self.owners[address] = {manager: set(leaves(_owned(body)))}
            self._validate(address, None, obj)
            return self._store(address, obj, "ADDED")
        wish = {"status": body["status"]} if subresource else {k: v for k, v in body.items() if k != "status"}
        paths, before = leaves(_owned(wish)), leaves(live)
        changed = {path for path, value in paths.items() if before.get(path) != value}
        owners = self.owners[address]
        self._check_conflicts(changed, owners, manager, force=query.get("force") == "true")
        obj = merge(clone(live), _owned(wish))
        others = set().union(*(held for name, held in owners.items() if name != manager))
        gone = owners.get(manager, set()) - set(paths) - others
        for path in gone:
            remove(obj, path)
        self._validate(address, live, obj)
        for name, held in owners.items():
            if name != manager:
                held.difference_update(changed)
        owners[manager] = set(paths)
        return self._change(address, live, obj)

    def _check_conflicts(self, changed: set[Path], owners: dict[str, set[Path]], manager: str, *, force: bool) -> None:
        if force:
            return
        for name, held in owners.items():
            clash = changed & held
            if name != manager and clash:
                raise RefusedError(
                    409, "Conflict", f"Apply failed with conflicts with {name}: {sorted(clash, key=str)[:3]}"
                )

    def _merge(self, address: Address, body: Json, query: dict[str, str], subresource: str) -> Json:
        live = self._found(address)
        meta = body.get("metadata", {})
        for field in ("resourceVersion", "uid"):
            if field in meta and meta[field] != live["metadata"][field]:
                raise RefusedError(409, "Conflict", f"{field} {meta[field]} is not {live['metadata'][field]}")
        wish = {"status": body.get("status", {})} if subresource else {k: v for k, v in body.items() if k != "status"}
        obj = merge_patch(live, wish)
        self._validate(address, live, obj)
        manager = f"{query.get('fieldManager', 'unknown')}/Update"
        before = leaves(live)
        changed = {path for path, value in leaves(_owned(obj)).items() if before.get(path) != value}
        for held in self.owners[address].values():
            held.difference_update(changed)
        self.owners[address].setdefault(manager, set()).update(changed)
        return self._change(address, live, obj)

    def _delete(self, address: Address, options: Json) -> Json:
        live = self._found(address)
        uid = options.get("preconditions", {}).get("uid")
        if uid is not None and uid != live["metadata"]["uid"]:
            raise RefusedError(409, "Conflict", f"uid {uid} is not {live['metadata']['uid']}")
        if live["metadata"].get("finalizers"):
            if "deletionTimestamp" not in live["metadata"]:
                obj = clone(live)
                obj["metadata"]["deletionTimestamp"] = self._stamp()
                obj["metadata"]["generation"] += 1
                self._store(address, obj, "MODIFIED")
        else:
            self._gone(address)
        return {"kind": "Status", "status": "Success"}

    # State

    def edit(self, kind: Kind, namespace: str, name: str, change: Json, manager: str = "somebody") -> Json:
        """Change an object as a user or a controller does: a merge patch, the status where the change is one."""
        subresource = "status" if set(change) == {"status"} else ""
        return self._merge((kind.plural, namespace, name), change, {"fieldManager": manager}, subresource)

    def add(self, kind: Kind, obj: Json, manager: str = "somebody") -> Json:
        """Create an object as somebody else; a status in it is set too."""
        status = obj.get("status")
        made = self._create(kind, obj["metadata"]["namespace"], obj, manager)
        if status is not None:
            made = self.edit(kind, made["metadata"]["namespace"], made["metadata"]["name"], {"status": status})
        return made

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete an object as somebody else."""
        self._delete((kind.plural, namespace, name), {})

    def find(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """Give an object without a call."""
        return clone(self.objects.get((kind.plural, namespace, name)))

    def all(self, kind: Kind) -> list[Json]:
        """Give all objects of a kind without a call."""
        return [clone(obj) for (plural, _ns, _name), obj in sorted(self.objects.items()) if plural == kind.plural]

    def _found(self, address: Address) -> Json:
        if address not in self.objects:
            raise RefusedError(404, "NotFound", f'{address[0]} "{address[2]}" not found')
        return self.objects[address]

    def _admit(self, kind: Kind) -> None:
        if kind.plural in self.quota:
            raise RefusedError(403, "Forbidden", f"exceeded quota: {kind.plural}")

    def _begin(self, kind: Kind, namespace: str, body: Json) -> Json:
        obj = clone(body)
        obj["metadata"] |= {
            "namespace": namespace,
            "uid": f"uid-{next(self._uid)}",
            "creationTimestamp": self._stamp(),
            "generation": 1,
        }
        return {"apiVersion": kind.api_version, "kind": kind.name, **obj}

    def _validate(self, address: Address, live: Json | None, obj: Json) -> None:
        names = [port["name"] for port in obj.get("spec", {}).get("ports", ()) if address[0] == "services"]
        if len(names) != len(set(names)):
            raise RefusedError(422, "Invalid", "spec.ports: Duplicate value")
        for path in IMMUTABLE.get(address[0], ()):
            if live is not None and read(live, path) is not None and read(live, path) != read(obj, path):
                raise RefusedError(422, "Invalid", f"{'.'.join(path)}: field is immutable")

    def _change(self, address: Address, live: Json, obj: Json) -> Json:
        if obj == live:
            return clone(live)  # no change, no new version, no event
        if obj.get("spec") != live.get("spec"):
            obj["metadata"]["generation"] = live["metadata"]["generation"] + 1
        if "deletionTimestamp" in obj["metadata"] and not obj["metadata"].get("finalizers"):
            self.objects[address] = obj
            self._gone(address)
            return clone(obj)
        return self._store(address, obj, "MODIFIED")

    def _store(self, address: Address, obj: Json, event: str) -> Json:
        obj["metadata"]["resourceVersion"] = str(next(self._version))
        self.objects[address] = obj
        self._tell(event, address, obj)
        return clone(obj)

    def _gone(self, address: Address) -> None:
        obj = self.objects.pop(address)
        self.owners.pop(address, None)
        obj = clone(obj)
        obj["metadata"]["resourceVersion"] = str(next(self._version))
        self._tell("DELETED", address, obj)

    def collect_garbage(self) -> None:
        """Delete what is owned by nobody that lives."""
        uids = {obj["metadata"]["uid"] for obj in self.objects.values()}
        for address, obj in list(self.objects.items()):
            held = obj["metadata"].get("ownerReferences")
            if held and not any(owner["uid"] in uids for owner in held) and address in self.objects:
                self._delete(address, {})

    def _tell(self, event: str, address: Address, obj: Json) -> None:
        for watcher in self.watchers:
            watcher(event, self._kinds[address[0]], clone(obj))

    def _stamp(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")


def _owned(obj: Json) -> Json:
    """Leave out what is nobody's field: identity and bookkeeping."""
    meta = {key: obj.get("metadata", {}).get(key) for key in ("labels", "annotations", "ownerReferences", "finalizers")}
    rest = {key: value for key, value in obj.items() if key not in {"apiVersion", "kind", "metadata"}}
    return {**rest, "metadata": {key: value for key, value in meta.items() if value}}


def _has(obj: Json, fields: str) -> bool:
    wanted = [term.split("=", 1) for term in fields.split(",") if term]
    return all(read(obj, tuple(field.split("."))) == value for field, value in wanted)


def _selected(obj: Json, selector: str) -> bool:
    wanted = [term.split("=", 1) for term in selector.split(",") if term]
    labels = obj["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in wanted)
