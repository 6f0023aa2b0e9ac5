from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from multimodal_api.engine import Backend
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_worker.backends import LOADERS
from multimodal_worker.device import DeviceChoice, DeviceThread, choose, cpu_threads
from support.tiny_engine import build_inputs

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("choice", "gpus", "seen", "device"),
    [
        (DeviceChoice.AUTO, 0, False, "cpu"),
        (DeviceChoice.AUTO, 0, True, "cpu"),
        (DeviceChoice.AUTO, 1, True, "cuda:0"),
        (DeviceChoice.AUTO, 1, False, None),
        (DeviceChoice.CPU, 1, True, "cpu"),
        (DeviceChoice.CUDA, 0, False, None),
    ],
)
def test_the_device(
    monkeypatch: pytest.MonkeyPatch,
    choice: DeviceChoice,
    gpus: int,
    seen: bool,  # noqa: FBT001 -- a column of the table
    device: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    if device is not None:
        assert str(choose(choice, num_gpus=gpus)) == device
        return
    with pytest.raises(ProductError) as caught:
        choose(choice, num_gpus=gpus)
    assert caught.value.failure.reason is Reason.DEVICE_MISSING


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000"}, CORES),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "99900000 100000"}, CORES),
        ({"cpu.max": "nonsense"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_container_s_quota_bounds_the_threads(tmp_path: Path, files: dict[str, str], threads: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_threads(tmp_path) == threads


@pytest.mark.parametrize("backend", [Backend.VLLM, Backend.TENSORRT_LLM])
def test_a_backend_whose_library_is_not_here_says_so(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(ProductError) as caught:
        LOADERS[backend](tmp_path, build_inputs(), device=torch.device("cpu"), thread=DeviceThread())
    failure = caught.value.failure
    assert failure.reason is Reason.BACKEND_UNAVAILABLE
    assert backend in failure.problem
    assert "spec.engine.backend" in str(failure)


def test_every_backend_has_a_loader() -> None:
    assert set(LOADERS) == set(Backend)
