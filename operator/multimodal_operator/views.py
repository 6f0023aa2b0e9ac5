"""Stored objects → the records of `snapshot`. Pure, and total: a field that is missing is empty, never an error."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from multimodal_api import labels
from multimodal_api.build import BuildReport
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.resource import Spec
from multimodal_api.status import Status
from multimodal_operator.snapshot import (
    APPLIED,
    HELD_SPEC,
    RUN,
    STORE_UID,
    Claim,
    Deployment,
    Ended,
    Job,
    Pod,
    Purpose,
    Resource,
)

if TYPE_CHECKING:
    from multimodal_operator.kinds import Json

_PROBLEMS_SHOWN: Final = 3
_PURPOSES: Final = frozenset(purpose.value for purpose in Purpose)


def resource(obj: Json) -> Resource:
    """Read a `MultimodalDeployment`; one that this version cannot read carries its problem instead of a spec."""
    meta = obj["metadata"]
    spec, problem = _spec(obj.get("spec") or {})
    deleting = meta.get("deletionTimestamp")
    return Resource(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        deleting_since=_time(deleting) if deleting else None,
        finalizers=tuple(meta.get("finalizers") or ()),
        spec=spec,
        problem=problem,
        status=_status(obj.get("status") or {}),
    )


def _spec(raw: Json) -> tuple[Spec | None, Failure | None]:
    try:
        return Spec.model_validate(raw), None
    except ValidationError as error:
        found = error.errors(include_url=False)
        shown = "; ".join(
            f"spec.{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in found[:_PROBLEMS_SHOWN]
        )
        return None, Failure(
            reason=Reason.INVALID, at="spec", problem=shown, remedy="correct the field; kubectl explain mmd.spec tells"
        )


def _status(raw: Json) -> Status:
    try:
        return Status.model_validate(raw)
    except ValidationError:
        return Status()  # a report, no input: what another version wrote is written anew


def claim(obj: Json) -> Claim:
    """Read a PersistentVolumeClaim."""
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    return Claim(
        name=meta["name"],
        uid=meta.get("uid", ""),
        phase=status.get("phase", "Pending"),
        deleting="deletionTimestamp" in meta,
        storage_class=spec.get("storageClassName"),
        access_modes=tuple(spec.get("accessModes") or ()),
        size=spec.get("resources", {}).get("requests", {}).get("storage", ""),
    )


def pod(obj: Json) -> Pod:
    """Read a pod, its first container standing for it."""
    meta, status = obj["metadata"], obj.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or ()}
    container: Json = next(iter(status.get("containerStatuses") or ()), {})
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting = state.get("waiting")
    scheduled = conditions.get("PodScheduled", {})
    pod_labels = meta.get("labels") or {}
    return Pod(
        name=meta["name"],
        uid=meta.get("uid", ""),
        owner_uid=controller(obj).get("uid", ""),
        engine_key=pod_labels.get(labels.LABEL_ENGINE_KEY, ""),
        component=pod_labels.get(labels.LABEL_COMPONENT, ""),
        created=_time(meta["creationTimestamp"]),
        phase=status.get("phase", "Pending"),
        ip=status.get("podIP", ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in meta,
        started="running" in state or "terminated" in state or "terminated" in last,
        restarts=container.get("restartCount", 0),
        unscheduled=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        waiting=(waiting.get("reason", ""), waiting.get("message", "")) if waiting else None,
        ended=_ended(state.get("terminated") or last.get("terminated")),
        evicted=status.get("message", "") if status.get("reason") else "",
    )


def _ended(raw: Json | None) -> Ended | None:
    if not raw:
        return None
    at = raw.get("finishedAt")
    return Ended(
        exit_code=raw.get("exitCode", 0),
        reason=raw.get("reason", ""),
        message=raw.get("message", "").strip(),
        at=_time(at) if at else None,
    )


def job(obj: Json) -> Job | None:
    """Read a Job of ours; None when its labels do not tell what it is for."""
    meta, status = obj["metadata"], obj.get("status") or {}
    job_labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    component = job_labels.get(labels.LABEL_COMPONENT, "")
    if component not in _PURPOSES:
        return None
    conditions = {item["type"]: item for item in status.get("conditions") or () if item.get("status") == "True"}
    complete, failed = conditions.get("Complete"), conditions.get("Failed")
    ended = status.get("completionTime") or (complete or failed or {}).get("lastTransitionTime")
    owner = controller(obj)
    return Job(
        name=meta["name"],
        uid=meta.get("uid", ""),
        purpose=Purpose(component),
        engine_key=job_labels.get(labels.LABEL_ENGINE_KEY, ""),
        store=job_labels.get(labels.LABEL_ENGINE_STORE, ""),
        owner_uid=owner.get("uid", ""),
        owner_name=owner.get("name", ""),
        store_uid=annotations.get(STORE_UID, ""),
        template=annotations.get(APPLIED, ""),
        run=_whole(annotations.get(RUN)),
        started=_time(status["startTime"]) if status.get("startTime") else None,
        finished=_time(ended) if ended and (complete or failed) else None,
        succeeded=complete is not None,
        failure=(failed.get("reason", ""), failed.get("message", "")) if failed else None,
        pods_failed=status.get("failed", 0),
        deleting="deletionTimestamp" in meta,
    )


def deployment(obj: Json) -> Deployment:
    """Read the serving Deployment."""
    meta, status = obj["metadata"], obj.get("status") or {}
    annotations = meta.get("annotations") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or ()}
    progress, refused = conditions.get("Progressing", {}), conditions.get("ReplicaFailure", {})
    stalled = progress.get("status") == "False" and progress.get("reason") == "ProgressDeadlineExceeded"
    return Deployment(
        uid=meta.get("uid", ""),
        engine_key=(meta.get("labels") or {}).get(labels.LABEL_ENGINE_KEY, ""),
        store_uid=annotations.get(STORE_UID, ""),
        held_spec=_object(annotations.get(HELD_SPEC)),
        generation=meta.get("generation", 1),
        observed_generation=status.get("observedGeneration", 0),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        available=status.get("availableReplicas", 0),
        ready=status.get("readyReplicas", 0),
        stalled=progress.get("message", "") if stalled else "",
        refused=refused.get("message", "") if refused.get("status") == "True" else "",
        deleting="deletionTimestamp" in meta,
    )


def build_report(message: str) -> BuildReport | None:
    """Read a build container's termination message; None when it left none."""
    try:
        return BuildReport.model_validate_json(message)
    except ValidationError:
        return None


def failure(message: str) -> Failure | None:
    """Read the failure that a server left as its termination message; None when it left none."""
    try:
        return Failure.model_validate_json(message)
    except ValidationError:
        return None


def controller(obj: Json) -> Json:
    """Give the owner reference of the object's controller; empty when it has none."""
    owners: list[Json] = obj["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 1


def _object(text: str | None) -> Json | None:
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
