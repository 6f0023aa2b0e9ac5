"""The kinds of objects that the operator touches, and with which verbs: the chart's RBAC holds exactly these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from multimodal_api import labels

Json = dict[str, Any]
"""A Kubernetes object, or a part of one, as the API server speaks it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind, and the verbs that the operator needs for it."""

    name: str
    api_version: str
    plural: str
    verbs: frozenset[str]
    """RBAC verbs. Server-side apply of a new object is authorised as `create` beside `patch`."""

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Give the URL path of a collection (no name), an object or its subresource; no namespace means all."""
        prefix = "/api" if "/" not in self.api_version else "/apis"
        parts = [prefix, self.api_version]
        parts += ["namespaces", namespace] if namespace else []
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)

    @property
    def group(self) -> str:
        """API group; empty for the core one."""
        return self.api_version.rpartition("/")[0]


_APPLIED: Final = frozenset({"get", "list", "watch", "create", "patch"})

RESOURCE: Final = Kind(labels.KIND, labels.API_VERSION, labels.PLURAL, frozenset({"list", "watch", "patch"}))
"""`patch` also on the status subresource."""
CLAIM: Final = Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims", _APPLIED)
SERVICE_ACCOUNT: Final = Kind("ServiceAccount", "v1", "serviceaccounts", _APPLIED)
SERVICE: Final = Kind("Service", "v1", "services", _APPLIED)
DEPLOYMENT: Final = Kind("Deployment", "apps/v1", "deployments", _APPLIED | {"delete"})
JOB: Final = Kind("Job", "batch/v1", "jobs", frozenset({"get", "list", "watch", "create", "delete"}))
POD: Final = Kind("Pod", "v1", "pods", frozenset({"list", "watch"}))
EVENT: Final = Kind("Event", "events.k8s.io/v1", "events", frozenset({"create", "list"}))
"""Listed only for a Job that gets no pod."""

WATCHED_CHILDREN: Final = (CLAIM, SERVICE_ACCOUNT, SERVICE, JOB, POD, DEPLOYMENT)
KINDS: Final = (RESOURCE, *WATCHED_CHILDREN, EVENT)
