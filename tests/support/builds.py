"""What a build container is told, for a checkpoint on a claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.engine import Backend, BuildInputs, Dtype, Limits, SourceIdentity
from multimodal_api.families import Family, LlmType
from multimodal_builder.checkpoints.checkpoint import CheckpointLocations
from multimodal_builder.stages import BuildRequest

if TYPE_CHECKING:
    from pathlib import Path

LIMITS: Final = Limits(vision_max_batch_size=1)


def request_for(
    checkpoint: Path,
    *,
    family: Family = Family.NEVA,
    llm_type: LlmType = LlmType.LLAMA,
    dtype: Dtype = Dtype.FLOAT32,
    limits: Limits = LIMITS,
) -> BuildRequest:
    """Ask for a whole build with the torch backend on the CPU."""
    inputs = BuildInputs(
        family=family,
        llm_type=llm_type,
        visual_checkpoint=SourceIdentity(kind="pvc", location="models", path=checkpoint.name),
        num_gpus=0,
        dtype=dtype,
        backend=Backend.TORCH,
        limits=limits,
    )
    return BuildRequest(
        inputs=inputs,
        key=inputs.key(),
        checkpoints=CheckpointLocations(visual=checkpoint),
        stop_after_inspect=False,
        expect_engine=False,
        keep=None,
    )
