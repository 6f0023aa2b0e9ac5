"""The embedded backend: an engine is the canonical model as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_api.engine import Backend
from multimodal_builder.backends.base import refuse_quantization, require_library

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.engine import BuildInputs, EngineFile


class TorchBackend:
    """Nothing to build."""

    def check(self, inputs: BuildInputs) -> None:
        """Require torch, which every image of ours holds."""
        require_library(Backend.TORCH, "torch")
        refuse_quantization(Backend.TORCH, inputs)

    def build(self, _engine: Path, _inputs: BuildInputs) -> tuple[EngineFile, ...]:
        """Add nothing."""
        return ()

    def verify(self, engine: Path, inputs: BuildInputs) -> str:
        """Answer one question."""
        from multimodal_builder.verify import answer_one_question  # noqa: PLC0415 (imports torch: seconds)

        return answer_one_question(engine, inputs)
