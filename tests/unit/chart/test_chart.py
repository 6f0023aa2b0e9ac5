"""What the chart renders, as Helm renders it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from multimodal_cluster import clients
from multimodal_cluster.paths import paths_of
from multimodal_operator.kinds import KINDS, RESOURCE
from multimodal_operator.main import _parser

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "multimodal-operator"
CRD = yaml.safe_load((ROOT / "crds" / "multimodaldeployments.multimodal.dev.yaml").read_text())
TESTED = {"test": {"deployment": "neva"}}

Json = dict[str, Any]


def helm(*arguments: str, values: Json | None = None) -> subprocess.CompletedProcess[str]:
    program = clients.path("helm", paths_of(os.environ))
    assert program.exists(), "helm is not in the cache: `make cluster-up` puts it there"
    command = [str(program), *arguments, "--values", "-"]
    return subprocess.run(
        command, input=json.dumps(values or {}), capture_output=True, text=True, timeout=60, check=False
    )


def render(values: Json | None = None) -> list[Json]:
    return [document for document in yaml.safe_load_all(_rendered(json.dumps(values or {}))) if document]


@cache
def _rendered(values: str) -> str:
    done = helm("template", "release", str(CHART), "--namespace", "home", values=json.loads(values))
    assert done.returncode == 0, done.stderr
    return done.stdout


def only(kind: str, values: Json | None = None) -> Json:
    (found,) = [each for each in render(values) if each["kind"] == kind]
    return found


def grants(role: Json) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def operator_container(values: Json | None = None) -> Json:
    container: Json = only("Deployment", values)["spec"]["template"]["spec"]["containers"][0]
    return container


USED = {(kind.group, kind.plural, verb) for kind in KINDS for verb in kind.verbs} | {
    (RESOURCE.group, f"{RESOURCE.plural}/status", "patch")
}


@pytest.mark.parametrize("values", [{}, TESTED, {"watch": {"namespaces": ["a", "b"]}}], ids=["plain", "test", "watch"])
def test_lint_finds_nothing(values: Json) -> None:
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_files_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "charts" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_rights_are_what_the_operator_uses() -> None:
    assert grants(only("ClusterRole")) == USED
    assert only("ClusterRoleBinding")["subjects"] == [
        {"kind": "ServiceAccount", "name": "release-multimodal-operator", "namespace": "home"}
    ]


def test_a_namespaced_operator_has_no_right_elsewhere() -> None:
    objects = render({"watch": {"namespaces": ["a", "b"]}})
    (everywhere,) = (each for each in objects if each["kind"] == "ClusterRole")
    assert grants(everywhere) == {("multimodal.dev", "multimodaldeployments", "patch")}, "to let go, see rbac.yaml"
    for kind in ("Role", "RoleBinding"):
        assert [each["metadata"]["namespace"] for each in objects if each["kind"] == kind] == ["a", "b"]
    assert all(grants(each) == USED for each in objects if each["kind"] == "Role")


def test_no_rights_are_made_where_they_come_from_elsewhere() -> None:
    kinds = {each["kind"] for each in render({"rbac": {"create": False}, "serviceAccount": {"create": False}})}
    assert kinds == {"CustomResourceDefinition", "Deployment", "Service"}


@pytest.mark.parametrize(
    ("values", "namespaces"), [({}, None), ({"watch": {"namespaces": ["a", "b"]}}, ["a", "b"])], ids=["all", "two"]
)
def test_the_operator_takes_its_arguments(values: Json, namespaces: list[str] | None) -> None:
    container = operator_container({**values, "logLevel": "debug"})
    assert container["command"] == ["multimodal-operator"]
    options = _parser().parse_args(container["args"])
    assert (options.all_namespaces, options.namespace) == (namespaces is None, namespaces)
    assert (options.builder_image, options.server_image) == ("multimodal-builder:0.1.0", "multimodal-server:0.1.0")
    assert options.log_level == "debug"
    assert options.health_port == container["ports"][0]["containerPort"]


@pytest.mark.parametrize(
    ("images", "reference"),
    [
        ({}, "multimodal-operator:0.1.0"),
        ({"registry": "registry.example/team"}, "registry.example/team/multimodal-operator:0.1.0"),
        ({"registry": "registry.example/team/", "tag": "7"}, "registry.example/team/multimodal-operator:7"),
        ({"registry": "registry.example", "operator": "elsewhere.example/op:8"}, "elsewhere.example/op:8"),
    ],
)
def test_image_references(images: Json, reference: str) -> None:
    assert operator_container({"images": images})["image"] == reference


def test_every_pod_is_restricted() -> None:
    """The restricted Pod Security Standard, and a read-only root file system beyond it."""
    objects = render(TESTED)
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]
    pods += [each["spec"] for each in objects if each["kind"] == "Pod"]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_selectors_find_the_operator_and_not_the_question() -> None:
    """The pod of `helm test` carries the release's labels too."""
    objects = render(TESTED)
    by_kind = {each["kind"]: each for each in objects}
    operator = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    question = by_kind["Pod"]["metadata"]["labels"].items()
    for selector in (
        by_kind["Service"]["spec"]["selector"],
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        only("PodMonitor", {"metrics": {"podMonitor": True}})["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= operator
        assert not selector.items() <= question


def test_the_question_goes_to_the_named_deployment() -> None:
    asked = {"deployment": "neva", "namespace": "models", "httpPort": 9000, "modelName": "llava", "answer": "a cat"}
    variables = {each["name"]: each["value"] for each in only("Pod", {"test": asked})["spec"]["containers"][0]["env"]}
    assert variables == {
        "URL": "http://neva.models:9000",
        "MODEL": "llava",
        "MAX_OUTPUT_LEN": "16",
        "QUESTION": "What is in the picture?",
        "ANSWER": "a cat",
    }


@pytest.mark.parametrize(
    ("keep", "annotations"), [(True, {"helm.sh/resource-policy": "keep"}), (False, None)], ids=["keep", "remove"]
)
def test_the_definition_is_the_generated_one(keep: bool, annotations: Json | None) -> None:  # noqa: FBT001 -- a table
    crd = only("CustomResourceDefinition", {"crds": {"keep": keep}})
    assert crd["spec"] == CRD["spec"]
    assert crd["metadata"].get("annotations") == annotations


def test_the_definition_may_come_from_elsewhere() -> None:
    assert "CustomResourceDefinition" not in {each["kind"] for each in render({"crds": {"enabled": False}})}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image": {"tag": "7"}}, "image"),
        ({"images": {"operators": "x"}}, "operators"),
        ({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"watch": {"namespaces": "a"}}, "namespaces"),
        ({"watch": {"namespaces": ["a", "a"]}}, "namespaces"),
        ({"logLevel": "loud"}, "logLevel"),
        ({"crds": {"keep": "yes"}}, "keep"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(values: Json, named: str) -> None:
    done = helm("template", "release", str(CHART), values=values)
    assert done.returncode != 0
    assert named in done.stderr
