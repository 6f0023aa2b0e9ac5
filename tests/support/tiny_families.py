"""The committed tiny models as published engines."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from multimodal_api.build import Outcome
from multimodal_api.engine import Limits
from multimodal_api.families import Family, LlmType
from multimodal_builder.progress import Tracker
from multimodal_builder.stages import run_build
from multimodal_builder.store import Store
from support.builds import request_for

TINY: Final = Path(__file__).resolve().parents[2] / "examples/tiny"
LIMITS: Final = Limits(
    max_input_len=480, max_output_len=48, max_batch_size=4, max_multimodal_len=320, vision_max_batch_size=16
)
LLM_TYPES: Final = {Family.VIDEO_NEVA: LlmType.GPTNEXT}
"""Where it is not llama."""


def archive(family: Family) -> Path:
    """Where the model of a family is; its held-out questions are in `heldout` beside it."""
    name = family.value.replace("-", "_")
    return TINY / name / f"{name}.nemo"


def build_usual(family: Family, store: Path) -> Path:
    """Build the engine of a family with limits that all its held-out questions keep."""
    return build(family, LLM_TYPES.get(family, LlmType.LLAMA), LIMITS, store)


def build(family: Family, llm_type: LlmType, limits: Limits, store: Path) -> Path:
    """Build the engine of a family and give its folder."""
    request = request_for(archive(family), family=family, llm_type=llm_type, limits=limits)
    assert run_build(request, Store(store), Tracker()).outcome is Outcome.PUBLISHED
    return store / request.key
