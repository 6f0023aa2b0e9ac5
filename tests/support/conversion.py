"""A checkpoint to the canonical model, all the way through the product."""

from __future__ import annotations

from pathlib import Path

from multimodal_api.engine import Dtype
from multimodal_api.families import Family, LlmType
from multimodal_builder.canonical import Converted, write_canonical
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.inspection import inspect


def write_model(
    out: Path, paths: CheckpointPaths, *, family: Family = Family.NEVA, llm_type: LlmType = LlmType.LLAMA
) -> Converted:
    """Convert what has no problems, in the type it was trained in."""
    inspection, plan, opened = inspect(paths, family=family, llm_type=llm_type, dtype=Dtype.FLOAT32, limits=None)
    assert inspection.problems == ()
    assert plan is not None
    with opened:
        return write_canonical(plan, out, root=out, dtype=None, on_bytes=lambda _: None)
