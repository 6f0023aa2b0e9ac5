"""Changes of conditions → Kubernetes events. Pure; emitted after the status is written, so they never run ahead."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from multimodal_api import labels
from multimodal_api.reasons import Reason
from multimodal_api.status import ConditionStatus, ConditionType
from multimodal_operator.kinds import EVENT
from multimodal_operator.status import ON_THE_WAY

if TYPE_CHECKING:
    from datetime import datetime

    from multimodal_api.status import Condition, Status
    from multimodal_operator.kinds import Json
    from multimodal_operator.snapshot import Resource

_NOTE_LENGTH: Final = 1024
"""Characters that the API server accepts."""
_SILENT: Final = frozenset({Reason.PENDING, Reason.ACCEPTED, Reason.SOURCE_FOUND})
"""Reasons that tell nobody anything new."""


def transitions(before: Status, after: Status) -> list[Condition]:
    """List the conditions whose status or reason changed, each reason once."""
    known = {condition.type: (condition.status, condition.reason) for condition in before.conditions}
    changed: dict[Reason, Condition] = {}
    for condition in sorted(after.conditions, key=lambda condition: condition.type is ConditionType.READY):
        if (condition.status, condition.reason) != known.get(condition.type) and condition.reason not in _SILENT:
            changed.setdefault(condition.reason, condition)
    return list(changed.values())


def event(resource: Resource, reason: Reason, note: str, *, warn: bool, now: datetime, instance: str) -> Json:
    """Give the event; its name is made from what it says, so that a repetition after a crash is the same object."""
    said = f"{resource.uid} {resource.generation} {reason} {note} {now:%Y-%m-%dT%H:%M}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {
            "name": f"{resource.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
            "namespace": resource.namespace,
        },
        "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "type": "Warning" if warn else "Normal",
        "reason": reason.value,
        "action": "Reconcile",
        "note": note[:_NOTE_LENGTH],
        "regarding": {
            "apiVersion": labels.API_VERSION,
            "kind": labels.KIND,
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
        },
        "reportingController": f"{labels.GROUP}/{labels.MANAGED_BY}",
        "reportingInstance": instance[:128],
    }


def is_warning(condition: Condition) -> bool:
    """Tell what somebody should look at from what passes by itself."""
    quiet = ON_THE_WAY | {Reason.SUSPENDED, Reason.DELETING}
    return condition.status is not ConditionStatus.TRUE and condition.reason not in quiet
