"""What all children share: names, labels, owners, and the digest by which a changed wish is noticed."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from multimodal_api import labels
from multimodal_operator.kinds import CLAIM
from multimodal_operator.snapshot import APPLIED

if TYPE_CHECKING:
    from multimodal_operator.kinds import Json, Kind
    from multimodal_operator.snapshot import Resource
    from multimodal_operator.want import Wanted

PART_OF = {
    "store": "multimodal-store",
    "runtime": "multimodal-runtime",
    "serving": "multimodal-server",
    "find": "multimodal-builder",
    "inspect": "multimodal-builder",
    "build": "multimodal-builder",
}
"""`app.kubernetes.io/name` of each component."""


def child_labels(want: Wanted, component: str) -> dict[str, str]:
    """Label a child; the first of these is what the operator's watches select by."""
    return {
        labels.LABEL_MANAGED_BY: labels.MANAGED_BY,
        labels.LABEL_NAME: PART_OF[component],
        labels.LABEL_INSTANCE: want.name,
        labels.LABEL_COMPONENT: component,
    }


def child(kind: Kind, want: Wanted, name: str, object_labels: dict[str, str], *, owned: bool = True) -> Json:
    """Begin a child object."""
    meta: Json = {"name": name, "namespace": want.namespace, "labels": object_labels}
    if owned:
        meta["ownerReferences"] = [owner_reference(want.resource)]
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta}


def owner_reference(resource: Resource) -> Json:
    """Let the garbage collector delete the child with the resource."""
    return {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "name": resource.name,
        "uid": resource.uid,
        "controller": True,
    }


def annotate(obj: Json, **annotations: str) -> Json:
    """Return the object with further annotations, names given as full keys."""
    meta = {**obj["metadata"], "annotations": {**obj["metadata"].get("annotations", {}), **annotations}}
    return {**obj, "metadata": meta}


def seal(obj: Json) -> Json:
    """Return the object with the digest of its wish as an annotation.

    A claim's spec is no part of it: what the cluster filled in must be applied with it ever after.
    """
    wish = obj["metadata"] if obj["kind"] == CLAIM.name else obj
    return annotate(obj, **{APPLIED: digest(wish)})


def digest(obj: Json) -> str:
    """Digest an object: equal for equal content, whatever the order of its keys."""
    return hashlib.sha256(compact(obj).encode()).hexdigest()[:16]


def compact(obj: Json) -> str:
    """Write canonical JSON."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"))
