"""The operator's memory of the cluster: one dictionary per kind, fed by events, full lists and its own writes.

Own writes are put in at once, so that a plan never forgets what was just done while the watch is still on its way.
Resource versions order what arrives (they may be compared since Kubernetes 1.35, and always could be in etcd).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from multimodal_api import labels
from multimodal_operator import views
from multimodal_operator.kinds import JOB, POD, RESOURCE, Json, Kind
from multimodal_operator.snapshot import Peer
from multimodal_operator.want import store_claim, store_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

Key = tuple[str, str]
"""Namespace and name."""


class Mirror:
    """What is known to exist."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Json]] = defaultdict(dict)
        self._peers: dict[Key, Peer] = {}
        """Key and store of every resource, read once per change."""
        self._stores: dict[Key, set[str]] = defaultdict(set)
        """(namespace, store digest) → names of the resources whose engines lie there."""
        self._store_of: dict[Key, str] = {}
        self._jobs_of: dict[Key, set[str]] = defaultdict(set)
        """(namespace, store digest) → names of Jobs."""
        self._pods_of: dict[Key, set[str]] = defaultdict(set)
        """(namespace, owner's uid or instance) → names of pods."""

    def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """Give an object, or None."""
        return self._objects[kind.name].get((namespace, name))

    def resources(self) -> list[Key]:
        """List all resources."""
        return list(self._objects[RESOURCE.name])

    def jobs(self, namespace: str, store: str) -> list[Json]:
        """List the Jobs that work on the store with this digest."""
        return self._named(JOB, namespace, self._jobs_of[namespace, store])

    def owned_jobs(self, namespace: str, name: str) -> list[Json]:
        """List the Jobs whose instance label names the resource."""
        return self._named(JOB, namespace, self._jobs_of[namespace, f"instance/{name}"])

    def pods(self, namespace: str, owner: str) -> list[Json]:
        """List pods by the uid of their controller, or by `instance/<name of the resource>`."""
        return self._named(POD, namespace, self._pods_of[namespace, owner])

    def peers(self, namespace: str, store: str, but: str) -> tuple[Peer, ...]:
        """List the other resources whose engines lie in the store with this digest."""
        names = sorted(self._stores[namespace, store] - {but})
        return tuple(self._peers[namespace, name] for name in names)

    def put(self, kind: Kind, obj: Json) -> set[Key]:
        """Take in what is newer than what is known; give the resources that it concerns, none when it is no news."""
        key = _key(obj)
        known = self._objects[kind.name].get(key)
        if known is not None and _version(obj) <= _version(known):
            return set()
        concerned = self._concerned(kind, known) if known is not None else set()
        obj["metadata"].pop("managedFields", None)  # half of an object's bytes, and nobody asks for them
        self._objects[kind.name][key] = obj
        if known is not None:
            self._forget(kind, known)
        self._index(kind, obj)
        return concerned | self._concerned(kind, obj)

    def drop(self, kind: Kind, obj: Json) -> set[Key]:
        """Forget what is gone, unless its successor of the same name is already known."""
        key = _key(obj)
        known = self._objects[kind.name].get(key)
        if known is None or (known["metadata"].get("uid") != obj["metadata"].get("uid")):
            return set()
        concerned = self._concerned(kind, known)
        del self._objects[kind.name][key]
        self._forget(kind, known)
        return concerned

    def mark_deleting(self, kind: Kind, namespace: str, name: str, at: str) -> None:
        """Remember our own deletion until the watch confirms it."""
        known = self.get(kind, namespace, name)
        if known is not None and "deletionTimestamp" not in known["metadata"]:
            meta = {**known["metadata"], "deletionTimestamp": at}
            self._objects[kind.name][namespace, name] = {**known, "metadata": meta}

    def replace(self, kind: Kind, objs: Iterable[Json], version: int, namespace: str | None) -> set[Key]:
        """Take in a full list of a namespace (None: of all) as of a version: what it lacks and is older is gone."""
        listed: set[Key] = set()
        concerned: set[Key] = set()
        for obj in objs:
            listed.add(_key(obj))
            concerned |= self.put(kind, obj)
        for key, known in list(self._objects[kind.name].items()):
            if key not in listed and namespace in {None, key[0]} and _version(known) <= version:
                concerned |= self.drop(kind, known)
        return concerned

    def _concerned(self, kind: Kind, obj: Json) -> set[Key]:
        namespace, name = _key(obj)
        object_labels = _labels(obj)
        if kind is RESOURCE:
            # The others in the same store: they share its Jobs.
            shared = self._store_of.get((namespace, name), "")
            return {(namespace, name), *((namespace, peer) for peer in self._stores.get((namespace, shared), ()))}
        instance, store = object_labels.get(labels.LABEL_INSTANCE), object_labels.get(labels.LABEL_ENGINE_STORE)
        concerned: set[Key] = {(namespace, instance)} if instance else set()
        if store:
            concerned |= {(namespace, peer) for peer in self._stores.get((namespace, store), ())}
        return concerned

    def _index(self, kind: Kind, obj: Json) -> None:
        namespace, name = _key(obj)
        if kind is RESOURCE:
            self._index_resource(obj)
        for index in self._indexed(kind, obj):
            (self._jobs_of if kind is JOB else self._pods_of)[namespace, index].add(name)

    def _forget(self, kind: Kind, obj: Json) -> None:
        namespace, name = _key(obj)
        if kind is RESOURCE and (namespace, name) not in self._objects[kind.name]:
            self._stores[namespace, self._store_of.pop((namespace, name), "")].discard(name)
            self._peers.pop((namespace, name), None)
        for index in self._indexed(kind, obj):
            (self._jobs_of if kind is JOB else self._pods_of)[namespace, index].discard(name)

    def _indexed(self, kind: Kind, obj: Json) -> list[str]:
        object_labels = _labels(obj)
        instance = f"instance/{object_labels.get(labels.LABEL_INSTANCE, '')}"
        if kind is JOB:
            return [object_labels.get(labels.LABEL_ENGINE_STORE, ""), instance]
        if kind is POD:
            return [views.controller(obj).get("uid", ""), instance]
        return []

    def _index_resource(self, obj: Json) -> None:
        resource = views.resource(obj)
        key = (resource.namespace, resource.name)
        self._stores[resource.namespace, self._store_of.pop(key, "")].discard(resource.name)
        self._peers.pop(key, None)
        if resource.spec is None:
            return
        store = store_digest(store_claim(resource.name, resource.spec))
        self._store_of[key] = store
        self._stores[resource.namespace, store].add(resource.name)
        self._peers[key] = Peer(
            name=resource.name,
            uid=resource.uid,
            engine_key=resource.spec.engine_key(),
            builds=not resource.spec.suspend and resource.deleting_since is None,
        )

    def _named(self, kind: Kind, namespace: str, names: Iterable[str]) -> list[Json]:
        objects = self._objects[kind.name]
        return [objects[namespace, name] for name in sorted(names) if (namespace, name) in objects]


def _key(obj: Json) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _labels(obj: Json) -> Json:
    found: Json = obj["metadata"].get("labels") or {}
    return found


def _version(obj: Json) -> int:
    text = obj["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0
