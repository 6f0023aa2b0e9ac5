"""vLLM: loads the canonical model as it is and is fed with prompt embeddings. Only the worker imports the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_api.engine import Backend
from multimodal_builder.backends.base import refuse_quantization, require_library

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.engine import BuildInputs, EngineFile


class VllmBackend:
    """Nothing to build without quantisation."""

    def check(self, inputs: BuildInputs) -> None:
        """Require vllm."""
        require_library(Backend.VLLM, "vllm")
        refuse_quantization(Backend.VLLM, inputs)

    def build(self, _engine: Path, _inputs: BuildInputs) -> tuple[EngineFile, ...]:
        """Add nothing."""
        return ()

    def verify(self, engine: Path, inputs: BuildInputs) -> str:
        """Answer one question with the same weights; vLLM's own start is the worker's warm-up."""
        from multimodal_builder.verify import answer_one_question  # noqa: PLC0415 (imports torch: seconds)

        return answer_one_question(engine, inputs)
