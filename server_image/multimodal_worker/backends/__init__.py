"""What runs the language model: one module per engine library, all behind `base.Backend`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.engine import Backend as BackendName
from multimodal_worker.backends import tensorrt_llm, torch, vllm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_worker.backends.base import Loader

LOADERS: Final[Mapping[BackendName, Loader]] = {
    BackendName.TORCH: torch.load,
    BackendName.VLLM: vllm.load,
    BackendName.TENSORRT_LLM: tensorrt_llm.load,
}
