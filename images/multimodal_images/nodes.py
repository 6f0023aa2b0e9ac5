"""Images on the cluster's nodes before the first pod needs them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from multimodal_cluster.providers import choose
from multimodal_cluster.tools import Tools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

NAME: Final = "multimodal-images"
NAMESPACE: Final = "default"
PULL_DEADLINE_S: Final = 900
REMEDY: Final = f"`kubectl -n {NAMESPACE} describe pods -l app={NAME}` says which image and why"


def pull(references: Mapping[str, str], paths: Paths, progress: Progress) -> None:
    """Have every node pull the images that it lacks.

    Raises:
        ClusterError: a node cannot pull one.
    """
    tools = Tools(choose(os.environ, paths, progress))

    def kubectl(*arguments: str, text: str | None = None, seconds: float = 60) -> str:
        return tools.kubectl("--namespace", NAMESPACE, *arguments, text=text, seconds=seconds, remedy=REMEDY)

    nodes = json.loads(kubectl("get", "nodes", "--output", "json"))["items"]
    if all(set(references.values()) <= _images(node) for node in nodes):
        return
    with progress.step("pull the images onto the nodes (once per content)"):
        kubectl("apply", "--filename", "-", text=json.dumps(_daemon_set(references)))
        try:
            wait = ("rollout", "status", f"daemonset/{NAME}", f"--timeout={PULL_DEADLINE_S}s")
            kubectl(*wait, seconds=PULL_DEADLINE_S + 10)
        finally:
            kubectl("delete", "daemonset", NAME, "--wait=false")


def _images(node: Mapping[str, Any]) -> set[str]:
    return {name for image in node["status"].get("images") or [] for name in image.get("names") or []}


def _daemon_set(references: Mapping[str, str]) -> dict[str, object]:
    """Describe pods that start each image once, one after the other: shared layers come once."""
    *first, (_, last) = references.items()
    security = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    steps = [
        {"name": program, "image": reference, "command": ["true"], "securityContext": security}
        for program, reference in first
    ]
    stay = {"name": NAME, "image": last, "command": ["sleep", "infinity"], "securityContext": security}
    labels = {"app": NAME}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "initContainers": steps,
                    "containers": [stay],
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 0,
                },
            },
        },
    }
