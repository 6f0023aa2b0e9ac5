"""What must be there before the story begins: the operator, a namespace, checkpoints on a claim, a pod that asks."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from multimodal_demo.questions import SHOWN, TINY

if TYPE_CHECKING:
    from multimodal_cluster.progress import Progress
    from multimodal_cluster.tools import Tools

ROOT: Final = Path(__file__).resolve().parent.parent.parent
CHART: Final = ROOT / "charts" / "multimodal-operator"
PODS: Final = Path(__file__).with_name("manifests") / "pods.yaml"
_NEVA: Final = TINY / "neva"
CHECKPOINTS: Final = (_NEVA / "neva.nemo", _NEVA / "clip", TINY / "siglip", *(show.folder for show in SHOWN))
"""What lies on the claim, by the last part of the name: archives, and beside them what they name and do not hold."""
MEDIA: Final = "/checkpoints"
"""The claim in the asking pod: the media of the questions lie in the models' folders."""
RELEASE: Final = "multimodal-operator"
OPERATOR_NAMESPACE: Final = "multimodal-system"
NAMESPACE: Final = "multimodal-demo"
READY_S: Final = 120
MMD: Final = "multimodaldeployments.multimodal.dev"


def install_operator(tools: Tools, images: Path, progress: Progress) -> None:
    """Install or upgrade the chart; other operators on the cluster keep their own namespaces.

    Raises:
        ClusterError: the operator is not ready in time.
    """
    remedy = (
        f"`kubectl -n {OPERATOR_NAMESPACE} describe pods` and `kubectl -n {OPERATOR_NAMESPACE} logs deploy/{RELEASE}`"
    )
    tools.kubectl("apply", "--filename", "-", text=_namespace())  # the chart puts the operator's rights there
    with progress.step("install the operator with Helm"):
        tools.helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE, "--create-namespace"),
            *("--values", str(images), "--set", f"watch.namespaces={{{NAMESPACE}}}"),
            # The definition may be there already, from the tests or from a release of another name.
            *("--take-ownership", "--force-conflicts", "--wait", f"--timeout={READY_S}s"),
            seconds=READY_S + 30,
            remedy=remedy,
        )


def set_up(tools: Tools, image: str, progress: Progress) -> None:
    """Have the operator's namespace hold the checkpoints and the asking pod, and no model from an earlier run.

    Raises:
        ClusterError: something is not ready in time.
    """
    with progress.step("load the checkpoints onto a claim, start the pod that asks"):
        kubectl(tools, "delete", MMD, "--all", "--wait", f"--timeout={READY_S}s", seconds=READY_S + 10)
        kubectl(tools, "delete", "pod", "client", "loader", "--ignore-not-found")
        kubectl(tools, "apply", "--filename", "-", text=Template(PODS.read_text()).substitute(image=image))
        wait = ("wait", "--for=condition=Ready", f"--timeout={READY_S}s", "pod/loader", "pod/client")
        kubectl(tools, *wait, seconds=READY_S + 10)
        for source in CHECKPOINTS:
            kubectl(tools, "cp", str(source), f"loader:{MEDIA}")
        kubectl(tools, "delete", "pod", "loader", "--wait=false")


def kubectl(tools: Tools, *arguments: str, text: str | None = None, seconds: float = 60) -> str:
    """Run kubectl in the demo's namespace; raises ClusterError."""
    remedy = f"`kubectl -n {NAMESPACE} get pods,mmd,events`"
    return tools.kubectl("--namespace", NAMESPACE, *arguments, text=text, seconds=seconds, remedy=remedy)


def _namespace() -> str:
    return f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
