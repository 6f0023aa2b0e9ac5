"""TensorRT-LLM 1.2.1, by name only: this version does not write its engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_api.engine import Backend
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.backends.base import require_library

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.engine import BuildInputs, EngineFile


class TensorrtLlmBackend:
    """Refuses, first for want of the library, then because engines are not built yet."""

    def check(self, _inputs: BuildInputs) -> None:
        """Refuse."""
        require_library(Backend.TENSORRT_LLM, "tensorrt_llm")
        raise _not_yet()

    def build(self, _engine: Path, _inputs: BuildInputs) -> tuple[EngineFile, ...]:
        """Refuse."""
        raise _not_yet()

    def verify(self, _engine: Path, _inputs: BuildInputs) -> str:
        """Refuse."""
        raise _not_yet()


def _not_yet() -> ProductError:
    return ProductError(
        Reason.NOT_IMPLEMENTED,
        at="spec.engine.backend",
        problem=f"{Backend.TENSORRT_LLM} engines are not built by this version",
        remedy="set it to vllm, or to torch with numGpus 0 or 1",
    )
