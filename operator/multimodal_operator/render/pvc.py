"""The engine store that the operator makes where the user names no claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api import labels
from multimodal_operator.kinds import CLAIM
from multimodal_operator.render.common import child, child_labels
from multimodal_operator.want import store_digest

if TYPE_CHECKING:
    from multimodal_operator.kinds import Json
    from multimodal_operator.want import Wanted

DEFAULT_SIZE: Final = "20Gi"
DEFAULT_ACCESS_MODES: Final = ("ReadWriteOnce",)


def claim(want: Wanted) -> Json:
    """Give the claim; with `deletionPolicy: Retain` it has no owner and so outlives the resource."""
    store = want.spec.engine_store
    spec: Json = {
        "accessModes": list(store.access_modes or DEFAULT_ACCESS_MODES),
        "resources": {"requests": {"storage": store.size or DEFAULT_SIZE}},
    }
    if store.storage_class_name is not None:
        spec["storageClassName"] = store.storage_class_name
    object_labels = {**child_labels(want, "store"), labels.LABEL_ENGINE_STORE: store_digest(want.store)}
    return {**child(CLAIM, want, want.store, object_labels, owned=not want.keeps_store), "spec": spec}
