"""The chart on the real cluster: its question gets an answer, and taking it away takes nothing of the users' away."""

from __future__ import annotations

import base64
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from multimodal_api import labels
from support.platform import apply, attempt, eventually, get, kubectl, read
from support.product import CHART, CHECKPOINT, RELEASE, Resource, published_images, restricted_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
PICTURE = base64.b64encode((CHECKPOINT / "heldout" / "00.png").read_bytes()).decode()
CRD = f"{labels.PLURAL}.{labels.GROUP}"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False, timeout=240)


def question(namespace: str, resource: Resource, answer: str) -> subprocess.CompletedProcess[str]:
    """Have the release ask the resource, and run its test."""
    values = {"deployment": resource.name, "answer": answer, "question": "Describe the picture.", "picture": PICTURE}
    sets = [part for name, value in values.items() for part in ("--set-string", f"test.{name}={value}")]
    done = helm("upgrade", RELEASE, str(CHART), "--namespace", namespace, "--reuse-values", *sets, "--wait")
    assert done.returncode == 0, done.stderr
    return helm("test", RELEASE, "--namespace", namespace, "--logs", "--timeout", "120s")


def test_the_question_gets_the_right_answer(
    namespace: str, resource: Callable[[str], Resource], store: dict[str, str]
) -> None:
    """And the test is one that can fail."""
    asked = resource("asked").create(engineStore=store)
    asked.until_ready()
    good = question(namespace, asked, "a green cross")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "a green cross" in good.stdout
    assert question(namespace, asked, "a pink elephant").returncode != 0


@pytest.fixture(name="home")
def _home() -> Iterator[str]:
    name = f"chart-{os.getpid()}"
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforced}})
    yield name
    helm("uninstall", RELEASE, "--namespace", name)
    kubectl("delete", "namespace", name, "--wait=false")


def install(home: str) -> None:
    values = [part for name, image in published_images().items() for part in ("--set", f"images.{name}={image}")]
    command = [
        "upgrade",
        RELEASE,
        str(CHART),
        "--install",
        "--namespace",
        home,
        "--set",
        f"watch.namespaces={{{home}}}",
    ]
    owned = ("--take-ownership", "--force-conflicts")
    done = helm(*command, *values, *owned, "--wait", "--timeout", "120s")
    assert done.returncode == 0, done.stderr


def test_uninstalling_leaves_what_users_made(home: str) -> None:
    install(home)
    kept = Resource(home, "kept").create(suspend=True)
    kept.until("Ready", reason="Suspended")
    before = kept.read()

    assert helm("uninstall", RELEASE, "--namespace", home, "--wait").returncode == 0

    assert attempt("get", "-n", home, "deployment", RELEASE).returncode != 0
    assert get("crd", CRD)["metadata"]["name"] == CRD
    after = kept.read()
    assert (after["metadata"]["uid"], after["spec"]) == (before["metadata"]["uid"], before["spec"])
    assert {each["metadata"]["uid"] for each in kept.children("persistentvolumeclaims")} == {
        each["metadata"]["uid"] for each in get("-n", home, "pvc")["items"]
    }

    install(home)
    kept.delete()  # the operator that came back cleans up after it
    assert attempt("get", "-n", home, labels.SHORT_NAME, kept.name).returncode != 0


LOOK = """
import importlib.util, os, pathlib, shutil
assert os.getuid() == 1000
assert shutil.which("multimodal-operator")
assert not [name for name in ("torch", "transformers", "numpy", "kubernetes") if importlib.util.find_spec(name)]
assert not [file for file in pathlib.Path("/etc/apt").rglob("*") if file.is_file() and "://" in file.read_text()]
try:
    pathlib.Path("/opt/operator/written").touch()
except OSError:
    print("well")
"""


def test_the_operator_has_no_torch_and_runs_as_nobody(namespace: str) -> None:
    """What is promised of the image, asked of the image."""
    apply(restricted_pod(namespace, "look", ["/opt/operator/bin/python", "-c", LOOK]))
    over = {"Succeeded", "Failed"}
    eventually(
        lambda: read("v1", "pods", namespace=namespace, name="look")["status"]["phase"] in over,
        "the pod ends",
        seconds=120,
    )
    said = kubectl("logs", "-n", namespace, "look")
    kubectl("delete", "pod", "-n", namespace, "look", "--wait=false")
    assert said.strip() == "well"
