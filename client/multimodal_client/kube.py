"""The resources in a cluster: the one module that imports a Kubernetes client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kubernetes import config
from kubernetes.client import ApiException, CustomObjectsApi
from urllib3.exceptions import HTTPError

from multimodal_api import labels
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_SECONDS: Final = 30.0


def namespace_of_context() -> str:
    """Give the namespace that kubectl would use."""
    try:
        _, active = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except config.ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")


def list_resources(namespace: str | None, name: str | None) -> Sequence[dict[str, Any]]:
    """Read resources.

    Args:
        namespace: where to look; None is everywhere.
        name: of one resource; None is all of them.

    Raises:
        ProductError: there is no cluster, no such resource, or no right to see it.
    """
    try:
        config.load_config()  # type: ignore[no-untyped-call]
        return _list(namespace, name)
    except (config.ConfigException, HTTPError) as error:
        raise ProductError(
            Reason.SERVER_FAILED,
            at="kubeconfig",
            problem=f"no cluster can be reached: {error}",
            remedy="set KUBECONFIG, or choose a context with `kubectl config use-context`",
        ) from error
    except ApiException as error:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=f"{labels.PLURAL}/{name or ''} in {namespace or 'all namespaces'}",
            problem=f"the cluster answers {error.status} {error.reason}",
            remedy="check name, namespace and your rights; is the operator's chart installed?",
        ) from error


def _list(namespace: str | None, name: str | None) -> Sequence[dict[str, Any]]:
    api = CustomObjectsApi()
    kind: dict[str, Any] = {"group": labels.GROUP, "version": labels.VERSION, "plural": labels.PLURAL}
    only: dict[str, Any] = {"field_selector": f"metadata.name={name}"} if name else {}
    found: Any = (
        api.list_namespaced_custom_object(namespace=namespace, **kind, **only, _request_timeout=TIMEOUT_SECONDS)
        if namespace is not None
        else api.list_cluster_custom_object(**kind, **only, _request_timeout=TIMEOUT_SECONDS)
    )
    items: list[dict[str, Any]] = found["items"]
    return items
