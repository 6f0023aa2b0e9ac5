"""Plan → API calls: actions in order, then the status once, then events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api import labels
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_operator import metrics
from multimodal_operator.events import event, is_warning, transitions
from multimodal_operator.kinds import EVENT, RESOURCE, Json, Kind
from multimodal_operator.kube import (
    BAD_REQUEST,
    CONFLICT,
    FORBIDDEN,
    NOT_FOUND,
    UNPROCESSABLE,
    KubeError,
    UnreachableError,
)
from multimodal_operator.plan import Action, AddFinalizer, Apply, Create, Delete
from multimodal_operator.snapshot import Refusal

if TYPE_CHECKING:
    from datetime import datetime

    from multimodal_api.status import Status
    from multimodal_operator.kube import Kube
    from multimodal_operator.mirror import Mirror
    from multimodal_operator.snapshot import Resource

_REFUSALS: Final = frozenset({BAD_REQUEST, FORBIDDEN, CONFLICT, UNPROCESSABLE})
"""Answers that tell of the object, not of the moment."""
_TAKEN: Final = "Taken"


class Writer:
    """The only writer; what it wrote is in the mirror before the next plan."""

    def __init__(self, kube: Kube, mirror: Mirror, instance: str) -> None:
        self._kube = kube
        self._mirror = mirror
        self._instance = instance

    async def act(self, resource: Resource, action: Action, now: datetime) -> Refusal | None:
        """Carry out one action.

        Returns:
            Why the API server, or another owner of the name, refused a child; None when it is done.

        Raises:
            KubeError: Anything else; the queue tries again.
        """
        match action:
            case AddFinalizer():
                await self._set_finalizer(resource, wanted=True)
            case Delete(kind, namespace, name, uid):
                await self._kube.delete(kind, namespace, name, uid)
                self._mirror.mark_deleting(kind, namespace, name, now.isoformat())
                metrics.WRITES.labels("delete", kind.name).inc()
            case Apply(kind, obj) | Create(kind, obj):
                try:
                    await self._put(resource, kind, obj, anew=isinstance(action, Create))
                except KubeError as error:
                    if isinstance(error, UnreachableError) or error.code not in _REFUSALS:
                        raise
                    return Refusal(kind=kind.name, name=obj["metadata"]["name"], failure=_failure(kind, obj, error))
        return None

    async def write_status(self, resource: Resource, status: Status) -> None:
        """Write the whole status."""
        body = {
            "apiVersion": labels.API_VERSION,
            "kind": labels.KIND,
            "metadata": {"name": resource.name, "namespace": resource.namespace},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        written = await self._kube.apply(RESOURCE, body, force=True, subresource="status")
        self._mirror.put(RESOURCE, written)
        metrics.WRITES.labels("status", RESOURCE.name).inc()

    async def tell(self, resource: Resource, status: Status, now: datetime) -> None:
        """Emit an event for each change between the resource's stored status and this one."""
        for condition in transitions(resource.status, status):
            await self.emit(resource, condition.reason, condition.message, warn=is_warning(condition), now=now)

    async def emit(self, resource: Resource, reason: Reason, note: str, *, warn: bool, now: datetime) -> None:
        """Emit one event; that it cannot be written (a namespace that goes) stops nothing."""
        obj = event(resource, reason, note, warn=warn, now=now, instance=self._instance)
        try:
            await self._kube.create(EVENT, obj)
        except KubeError as error:
            if isinstance(error, UnreachableError):
                raise
            return
        metrics.WRITES.labels("event", EVENT.name).inc()

    async def release(self, resource: Resource) -> None:
        """Let go of a resource that is being deleted."""
        try:
            left = await self._set_finalizer(resource, wanted=False)
        except KubeError as error:
            if error.code != NOT_FOUND:
                raise
            left = False
        gone = None if left else self._mirror.get(RESOURCE, resource.namespace, resource.name)
        if gone is not None:
            self._mirror.drop(RESOURCE, gone)  # before the watch tells: nothing is to be written to it any more

    async def _set_finalizer(self, resource: Resource, *, wanted: bool) -> bool:
        """Add or take away our finalizer; tell whether any is left."""
        current = self._mirror.get(RESOURCE, resource.namespace, resource.name)
        if current is None:
            return False
        others = [name for name in current["metadata"].get("finalizers") or () if name != labels.FINALIZER]
        patch: Json = {
            "metadata": {
                "uid": resource.uid,
                # Somebody else's finalizer that came meanwhile must not be lost.
                "resourceVersion": current["metadata"]["resourceVersion"],
                "finalizers": [*others, labels.FINALIZER] if wanted else others,
            }
        }
        written = await self._kube.merge(RESOURCE, resource.namespace, resource.name, patch)
        self._mirror.put(RESOURCE, written)
        metrics.WRITES.labels("finalizers", RESOURCE.name).inc()
        return bool(patch["metadata"]["finalizers"])

    async def _put(self, resource: Resource, kind: Kind, obj: Json, *, anew: bool) -> None:
        meta = obj["metadata"]
        if anew:
            await self._create(kind, obj)
            return
        known = self._mirror.get(kind, meta["namespace"], meta["name"])
        if known is None:
            # It may exist without our label: the watch does not show what is not ours, or no longer marked as ours.
            known = await self._kube.get(kind, meta["namespace"], meta["name"])
            if known is not None and not is_ours(known, resource):
                raise KubeError(CONFLICT, _TAKEN, "it exists and was not made by this operator")
        try:
            written = await self._kube.apply(kind, obj, force=known is not None)
        except KubeError as error:
            if error.code != UNPROCESSABLE or known is None:
                raise
            # Somebody's own item of a list (a port of the same name) contradicts ours: put the whole lists back first.
            await self._kube.merge(kind, meta["namespace"], meta["name"], {"spec": obj.get("spec", {})})
            written = await self._kube.apply(kind, obj, force=True)
        self._mirror.put(kind, written)
        metrics.WRITES.labels("apply", kind.name).inc()

    async def _create(self, kind: Kind, obj: Json) -> None:
        meta = obj["metadata"]
        try:
            written = await self._kube.create(kind, obj)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            # Another resource was faster, or an earlier attempt of ours got through.
            found = await self._kube.get(kind, meta["namespace"], meta["name"])
            if found is None or "deletionTimestamp" in found["metadata"]:
                raise UnreachableError(CONFLICT, error.reason, f"{meta['name']} is on its way out") from error
            if found["metadata"].get("labels", {}).get(labels.LABEL_MANAGED_BY) != labels.MANAGED_BY:
                raise KubeError(CONFLICT, _TAKEN, "it exists and was not made by this operator") from error
            self._mirror.put(kind, found)
            return
        self._mirror.put(kind, written)
        metrics.WRITES.labels("create", kind.name).inc()


def is_ours(obj: Json, resource: Resource) -> bool:
    """Tell a child of this resource (or of one of the same name before it) from an object that is somebody else's."""
    meta = obj["metadata"]
    owners = meta.get("ownerReferences") or []
    if any(owner.get("uid") == resource.uid for owner in owners):
        return True
    marks = meta.get("labels") or {}
    named = (marks.get(labels.LABEL_MANAGED_BY), marks.get(labels.LABEL_INSTANCE)) == (labels.MANAGED_BY, resource.name)
    return named and all(owner.get("kind") == labels.KIND for owner in owners)


def _failure(kind: Kind, obj: Json, error: KubeError) -> Failure:
    at = f"{kind.name} {obj['metadata']['name']}"
    if error.code == CONFLICT:
        remedy = f"rename or delete that {kind.name}, or give the resource another name"
        return Failure(reason=Reason.CONFLICT, at=at, problem=error.message, remedy=remedy)
    if error.code == FORBIDDEN:
        remedy = "raise the quota, or ask for less; it is tried again by itself"
        return Failure(reason=Reason.QUOTA_EXCEEDED, at=at, problem=error.message, remedy=remedy)
    return Failure(
        reason=Reason.INVALID, at=at, problem=error.message, remedy="correct the field that the message names"
    )
