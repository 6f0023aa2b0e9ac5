"""Which class builds for which backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.engine import Backend
from multimodal_builder.backends.tensorrt_llm import TensorrtLlmBackend
from multimodal_builder.backends.torch import TorchBackend
from multimodal_builder.backends.vllm import VllmBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.backends.base import BuildBackend

BACKENDS: Final[Mapping[Backend, BuildBackend]] = {
    Backend.TORCH: TorchBackend(),
    Backend.VLLM: VllmBackend(),
    Backend.TENSORRT_LLM: TensorrtLlmBackend(),
}
