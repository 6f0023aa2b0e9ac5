"""What runs inside the cluster and belongs to it: names and volumes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from multimodal_cluster import binaries, images
from multimodal_cluster.addresses import DNS_DOMAIN, DNS_SERVICE_IP, NODE_NAME
from multimodal_cluster.api import Api
from multimodal_cluster.commands import run
from multimodal_cluster.daemons import log_of
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.waiting import wait_until

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

MANIFESTS: Final = Path(__file__).parent / "manifests"
# namespace, Deployment
DEPLOYMENTS: Final = (("kube-system", "coredns"), ("local-path-storage", "local-path-provisioner"))
NODE_DEADLINE_S: Final = 90.0
DEPLOYMENT_DEADLINE_S: Final = 120.0


def install(paths: Paths, progress: Progress) -> None:
    """Apply the add-ons and wait until they serve.

    Raises:
        ClusterError: the node or an add-on is not ready in time.
    """
    api = Api(paths.kubeconfig)
    if not node_is_ready(api):
        with progress.step("wait for the node"):
            _wait_for_node(api, paths)
    kubectl(paths, "apply", "--server-side", "--force-conflicts", "-f", "-", text=manifests(paths))
    for namespace, name in DEPLOYMENTS:
        if not is_available(api, namespace, name):
            with progress.step(f"wait for {name}"):
                _wait_for_deployment(api, namespace, name, paths)


def manifests(paths: Paths) -> str:
    """Render every manifest, as YAML documents."""
    values = {
        "coredns.yaml": {"image": images.COREDNS.name(paths), "domain": DNS_DOMAIN, "address": DNS_SERVICE_IP},
        "local-path.yaml": {
            "image": images.LOCAL_PATH.name(paths),
            "helper_image": images.VOLUME.name(paths),
            "volumes": str(paths.volumes),
        },
    }
    return "\n---\n".join(Template((MANIFESTS / file).read_text()).substitute(given) for file, given in values.items())


def kubectl(paths: Paths, *arguments: str, text: str | None = None) -> str:
    """Run kubectl as the administrator."""
    program = str(binaries.program(binaries.KUBERNETES, "kubectl", paths))
    return run(
        "kubectl",
        [program, f"--kubeconfig={paths.kubeconfig}", *arguments],
        seconds=60,
        remedy=f"read {log_of('kube-apiserver', paths)}",
        text=text,
    )


def node_is_ready(api: Api) -> bool:
    """Tell whether the node takes pods."""
    try:
        node = json.loads(api.get(f"/api/v1/nodes/{NODE_NAME}"))
    except OSError:
        return False
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"].get("conditions", []))


def is_available(api: Api, namespace: str, name: str) -> bool:
    """Tell whether a Deployment's wanted pods, and no others, are available."""
    try:
        found = json.loads(api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"))
    except OSError:
        return False
    status = found["status"]
    return bool(
        status.get("observedGeneration") == found["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == found["spec"]["replicas"]
        and status.get("replicas", 0) == found["spec"]["replicas"]
        and status.get("availableReplicas", 0) == found["spec"]["replicas"]
    )


def _wait_for_node(api: Api, paths: Paths) -> None:
    if not wait_until(lambda: node_is_ready(api), seconds=NODE_DEADLINE_S):
        raise ClusterError(
            "node",
            f"not Ready after {NODE_DEADLINE_S:g}s",
            "read the kubelet's log: containerd, the network's configuration and control groups are the usual causes",
            log_of("kubelet", paths),
        )


def _wait_for_deployment(api: Api, namespace: str, name: str, paths: Paths) -> None:
    if not wait_until(lambda: is_available(api, namespace, name), seconds=DEPLOYMENT_DEADLINE_S):
        events = kubectl(paths, "get", "events", "-n", namespace, "--sort-by=.lastTimestamp")
        shown = re.sub(r"\s+", " ", " | ".join(events.splitlines()[-3:]))
        raise ClusterError(
            name,
            f"not available after {DEPLOYMENT_DEADLINE_S:g}s; last events: {shown}",
            f"`kubectl -n {namespace} describe pods` says why",
            log_of("kubelet", paths),
        )
