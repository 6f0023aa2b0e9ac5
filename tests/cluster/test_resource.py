"""The CRD on a real API server: it is accepted, its defaults appear, and CEL says what Python says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from multimodal_api import labels
from multimodal_api.resource import Spec
from multimodal_api.rules import breaches
from support.breaches import BREACHES, CHECKPOINT, spec

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / f"{labels.PLURAL}.{labels.GROUP}.yaml"

BASE_MODEL = {"type": "neva", "visualCheckpoint": CHECKPOINT}

pytestmark = pytest.mark.cluster


def kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module", autouse=True)
def _crd() -> None:
    applied = kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    assert applied.returncode == 0, applied.stderr
    established = kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{CRD.stem}")
    assert established.returncode == 0, established.stderr


def dry_run(wanted: dict[str, Any], name: str = "neva") -> subprocess.CompletedProcess[str]:
    resource = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": {"name": name}, "spec": wanted}
    return kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(resource))


@pytest.mark.parametrize("changes", [changes for changes, _, _ in BREACHES], ids=",".join)
def test_admission_refuses_with_the_message_that_python_gives(changes: dict[str, Any]) -> None:
    refused = dry_run(spec(**changes))
    assert refused.returncode != 0
    for failure in breaches(Spec.model_validate(spec(**changes))):
        assert str(failure) in refused.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__llmType": "bert"}, ["spec.model.llmType", '"bert"', '"llama"']),
        ({"limits": {"maxOutputLen": 0}}, ["spec.limits.maxOutputLen", "greater than or equal to 1"]),
        ({"limits": {"maxBatchSize": -1}}, ["spec.limits.maxBatchSize", "greater than or equal to 1"]),
        ({"numGpus": -1}, ["spec.numGpus", "greater than or equal to 0"]),
        ({"numGPUs": 1}, ["unknown field", "spec.numGPUs"]),
        ({"engine__key": "xyz"}, ["spec.engine.key", "xyz"]),
        ({"model": {"type": "neva"}}, ["spec.model.visualCheckpoint", "Required"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_the_schema_refuses_with_field_and_value(changes: dict[str, Any], words: list[str]) -> None:
    refused = dry_run(spec(**changes))
    assert refused.returncode != 0
    for word in words:
        assert word in refused.stderr


@pytest.mark.parametrize("name", ["9neva", "a" * 41, "a.b"])
def test_a_name_that_no_service_can_have_is_refused(name: str) -> None:
    refused = dry_run(spec(), name)
    assert refused.returncode != 0
    assert "metadata.name" in refused.stderr


def test_defaults_are_written_out() -> None:
    created = dry_run({"model": BASE_MODEL})
    assert created.returncode == 0, created.stderr
    stored = json.loads(created.stdout)["spec"]
    assert stored["numGpus"] == 1
    assert stored["limits"] == {
        "maxInputLen": 4096,
        "maxOutputLen": 256,
        "maxBatchSize": 1,
        "maxMultimodalLen": 3072,
    }
    assert Spec.model_validate(stored) == Spec.model_validate(
        {"model": {"type": "neva", "visualCheckpoint": CHECKPOINT}}
    )


@pytest.mark.parametrize("sample", sorted((ROOT / "examples/resources").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_is_accepted(sample: Path) -> None:
    created = kubectl("create", "--dry-run=server", "-f", str(sample))
    assert created.returncode == 0, created.stderr


def test_explain_reads_well() -> None:
    explained = kubectl("explain", "mmd.spec.limits.maxInputLen")
    assert explained.returncode == 0, explained.stderr
    assert "Longest prompt, text and media together, in tokens." in explained.stdout
