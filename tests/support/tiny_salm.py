"""The committed tiny SALM as a published engine, and what is asked about sounds that no training showed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tiny import heldout
from tiny.answering import Case

from multimodal_api.build import Outcome
from multimodal_api.engine import Backend, BuildInputs, Dtype, Limits, SourceIdentity
from multimodal_api.families import Family, LlmType
from multimodal_builder.checkpoints.checkpoint import CheckpointLocations
from multimodal_builder.progress import Tracker
from multimodal_builder.stages import BuildRequest, run_build
from multimodal_builder.store import Store

FOLDER: Final = Path(__file__).resolve().parents[2] / "examples/tiny/salm"
ARCHIVE: Final = FOLDER / "salm.nemo"


def build(store: Path) -> Path:
    """Build the engine and give its folder."""
    inputs = BuildInputs(
        family=Family.SALM,
        llm_type=LlmType.LLAMA,
        visual_checkpoint=SourceIdentity(kind="pvc", location="models", path=ARCHIVE.name),
        num_gpus=0,
        dtype=Dtype.FLOAT32,
        backend=Backend.TORCH,
        limits=Limits(
            max_input_len=200, max_output_len=48, max_batch_size=4, max_multimodal_len=32, vision_max_batch_size=4
        ),
    )
    request = BuildRequest(
        inputs=inputs,
        key=inputs.key(),
        checkpoints=CheckpointLocations(visual=ARCHIVE),
        stop_after_inspect=False,
        expect_engine=False,
        keep=None,
    )
    assert run_build(request, Store(store), Tracker()).outcome is Outcome.PUBLISHED
    return store / request.key


def cases() -> list[Case]:
    """The held-out sounds and questions."""
    return heldout.read(FOLDER / "heldout")
