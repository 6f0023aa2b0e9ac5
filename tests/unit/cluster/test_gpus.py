"""The node's GPUs are patched only where they are missing."""

from __future__ import annotations

from typing import Any

import pytest

from multimodal_cluster.gpus import missing_gpus

CAPACITY = {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "4"}
ALLOCATABLE = {"op": "add", "path": "/status/allocatable/nvidia.com~1gpu", "value": "4"}


@pytest.mark.parametrize(
    ("status", "patch"),
    [
        ({}, [CAPACITY, ALLOCATABLE]),
        ({"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}, [CAPACITY, ALLOCATABLE]),
        ({"capacity": {"nvidia.com/gpu": "0"}, "allocatable": {"nvidia.com/gpu": "0"}}, [CAPACITY, ALLOCATABLE]),
        ({"capacity": {"nvidia.com/gpu": "4"}, "allocatable": {"nvidia.com/gpu": "0"}}, [ALLOCATABLE]),
        ({"capacity": {"nvidia.com/gpu": "4"}, "allocatable": {"nvidia.com/gpu": "4"}}, []),
    ],
    ids=["a new node", "a node without GPUs", "a restarted kubelet", "half", "all there"],
)
def test_only_missing_gpus_are_patched(status: dict[str, Any], patch: list[dict[str, object]]) -> None:
    assert missing_gpus(status, 4) == patch
