"""vLLM: the border to the package `vllm`, which is imported here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_api.engine import Backend as BackendName
from multimodal_worker.backends.base import refuse

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from multimodal_api.engine import BuildInputs
    from multimodal_worker.backends.base import Engine
    from multimodal_worker.device import DeviceThread


def load(model_dir: Path, inputs: BuildInputs, *, device: torch.device, thread: DeviceThread) -> Engine:  # noqa: ARG001 -- base.Loader
    """Refuse by name."""
    refuse(BackendName.VLLM, "vllm")
