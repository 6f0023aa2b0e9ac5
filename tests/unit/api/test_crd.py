"""The generated CRD keeps the API conventions that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multimodal_api.crd import definition

ROOT = Path(__file__).parents[3]
VERSION = definition()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]["properties"]


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk every schema node."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


ALL = [*nodes(SCHEMA["spec"], "spec"), *nodes(SCHEMA["status"], "status")]


def test_the_committed_file_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "crds/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("path", "node"), ALL, ids=[path for path, _ in ALL])
def test_every_node_is_structural_and_bounded(path: str, node: dict[str, Any]) -> None:
    assert set(node) & {"$ref", "anyOf", "allOf", "oneOf", "title", "const"} == set()
    assert "type" in node
    if not path.endswith("[]"):
        assert re.match(r"^[A-Z0-9]", node["description"]) or node["description"].startswith("auto "), path
        assert node["description"].endswith("."), path
    assert node["type"] != "number", "floats do not round-trip"
    if path.startswith("spec"):
        if node["type"] == "string":
            assert {"maxLength", "enum", "pattern"} & set(node)
        if node["type"] == "array":
            assert "maxItems" in node
        if node["type"] == "integer":
            assert "minimum" in node


def test_nested_defaults_are_reached() -> None:
    limits = SCHEMA["spec"]["properties"]["limits"]
    assert limits["default"] == {}
    assert limits["properties"]["maxInputLen"]["default"] == 4096
    assert SCHEMA["spec"]["properties"]["triton"]["properties"]["httpPort"]["default"] == 8000


def test_every_parameter_of_upstreams_deploy_script_has_its_default() -> None:
    fields = SCHEMA["spec"]["properties"]
    defaults = {
        "llm_model_type": fields["model"]["properties"]["llmType"]["default"],
        "num_gpus": fields["numGpus"]["default"],
        "dtype": fields["dtype"]["default"],
        "max_input_len": fields["limits"]["properties"]["maxInputLen"]["default"],
        "max_output_len": fields["limits"]["properties"]["maxOutputLen"]["default"],
        "max_batch_size": fields["limits"]["properties"]["maxBatchSize"]["default"],
        "max_multimodal_len": fields["limits"]["properties"]["maxMultimodalLen"]["default"],
        "triton_model_version": fields["triton"]["properties"]["modelVersion"]["default"],
        "triton_port": fields["triton"]["properties"]["httpPort"]["default"],
        "triton_http_address": fields["triton"]["properties"]["httpAddress"]["default"],
    }
    assert defaults == {
        "llm_model_type": "llama",
        "num_gpus": 1,
        "dtype": "bfloat16",
        "max_input_len": 4096,
        "max_output_len": 256,
        "max_batch_size": 1,
        "max_multimodal_len": 3072,
        "triton_model_version": 1,
        "triton_port": 8000,
        "triton_http_address": "0.0.0.0",  # noqa: S104 -- upstream's default
    }


def test_columns_are_those_people_expect() -> None:
    shown = [column["name"] for column in VERSION["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Phase", "Ready", "Model", "GPUs", "Replicas", "Engine", "Age"]
