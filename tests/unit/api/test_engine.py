"""The engine key: equal inputs give equal keys, and everything that decides an engine's bytes changes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_api.engine import BuildInputs
from multimodal_api.resource import Spec

BASE: dict[str, Any] = {
    "model": {"type": "neva", "visualCheckpoint": {"pvc": {"claimName": "c", "path": "m.nemo"}}},
    "numGpus": 0,
}


def key(**changes: Any) -> str:
    return Spec.model_validate(BASE | changes).engine_key()


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": {"maxInputLen": 2048, "maxMultimodalLen": 2000}},
        {"dtype": "float32"},
        {"numGpus": 1},
        {"model": BASE["model"] | {"visualCheckpoint": {"pvc": {"claimName": "c", "path": "other.nemo"}}}},
        {"model": BASE["model"] | {"visualCheckpoint": {"pvc": {"claimName": "d", "path": "m.nemo"}}}},
    ],
)
def test_what_decides_the_bytes_changes_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


@pytest.mark.parametrize(
    "changes",
    [
        {"serving": {"replicas": 3}},
        {"triton": {"httpPort": 9500}},
        {"suspend": True},
        {"engine": {"backend": "torch"}},  # what auto means without GPUs
        {"limits": {"maxInputLen": 4096}},  # the default, written out
        {"build": {"deadlineSeconds": 600}},
    ],
)
def test_what_does_not_decide_the_bytes_keeps_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes) == key()


def test_a_named_key_wins() -> None:
    assert key(engine={"key": "0123456789abcdef"}) == "0123456789abcdef"


def test_the_key_never_changes_between_versions() -> None:
    """A changed key would rebuild every engine at an operator upgrade: raise ENGINE_FORMAT to do that on purpose."""
    assert key() == "2b9c592ef7d274cd"


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_inputs_survive_json(batch: int, output: int) -> None:
    inputs = Spec.model_validate(BASE | {"limits": {"maxBatchSize": batch, "maxOutputLen": output}}).build_inputs()
    assert BuildInputs.model_validate_json(inputs.model_dump_json(by_alias=True)) == inputs
    assert BuildInputs.model_validate_json(inputs.model_dump_json(by_alias=True)).key() == inputs.key()
