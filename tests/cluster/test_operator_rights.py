"""The chart's ServiceAccount may do exactly what the operator does: the API server's own audit log says so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multimodal_api.resource import Spec
from multimodal_operator.want import store_digest
from support.platform import apply, eventually, get, kubectl
from support.product import RELEASE, SPEC, Resource, restricted_pod

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.environ.get("CLUSTER") == "current", reason="the audit log of a foreign cluster is not ours"),
]

Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb."""


def audit(namespace: str) -> list[dict[str, Any]]:
    """Give every call of the operator's account."""
    account = f"system:serviceaccount:{namespace}:{RELEASE}"
    lines = Path(os.environ["MULTIMODAL_AUDIT_LOG"]).read_text(errors="replace").splitlines()
    calls = [json.loads(line) for line in lines if account in line]
    return [call for call in calls if call["user"]["username"] == account]


def used(calls: list[dict[str, Any]]) -> set[Right]:
    """Name the rights that calls took; an apply that made an object took the right to create it, too."""
    rights: set[Right] = set()
    for call in calls:
        target = call.get("objectRef")
        if target is None:
            continue  # discovery: everybody may
        resource = "/".join(part for part in (target["resource"], target.get("subresource", "")) if part)
        rights.add((target.get("apiGroup", ""), resource, call["verb"]))
        if call["verb"] == "patch" and call.get("responseStatus", {}).get("code") == 201:
            rights.add((target.get("apiGroup", ""), resource, "create"))
    return rights


def granted(namespace: str) -> set[Right]:
    """Name the rights of the chart's role."""
    rules = get("-n", namespace, "role", RELEASE)["rules"]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_no_right_is_missing_and_none_is_idle(resource: Callable[[str], Resource], namespace: str) -> None:
    # A Job of that name is in the way, so that the operator looks whose it is.
    name = f"mmd-build-{Spec.model_validate(SPEC).engine_key()}-{store_digest('rights-engines')}"
    pod = restricted_pod(namespace, name, ["true"])["spec"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace}}
    apply(job | {"spec": {"suspend": True, "template": {"spec": pod}}})
    neva = resource("rights").create()
    neva.until("EngineBuilt", reason="Conflict", seconds=60)
    # A quota is in the way of the Job's pod, so that the operator looks what the Job controller says.
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-pods", "namespace": namespace}}
    apply(quota | {"spec": {"hard": {"pods": "0"}}})
    kubectl("delete", "job", "-n", namespace, name)
    try:
        told = neva.until("EngineBuilt", reason="QuotaExceeded", seconds=60)
        assert "exceeded quota: no-pods" in told["message"]
    finally:
        kubectl("delete", "quota", "-n", namespace, "no-pods")
    neva.until_ready()
    neva.delete()
    # A watch is logged when it ends.
    kubectl("rollout", "restart", "-n", namespace, f"deploy/{RELEASE}")
    kubectl("rollout", "status", "-n", namespace, f"deploy/{RELEASE}", "--timeout=90s", seconds=100)
    eventually(lambda: granted(namespace) <= used(audit(namespace)), "every right is used", seconds=30)

    calls = audit(namespace)
    forbidden = [call for call in calls if call["annotations"].get("authorization.k8s.io/decision") == "forbid"]
    assert [call["requestURI"] for call in forbidden] == []
    assert used(calls) == granted(namespace)
