"""The committed tiny SALM as a published engine, and what is asked about sounds that no training showed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tiny import heldout
from tiny.answering import Case

from multimodal_api.engine import Limits
from multimodal_api.families import Family, LlmType
from support import tiny_families

ARCHIVE: Final = tiny_families.archive(Family.SALM)
FOLDER: Final = ARCHIVE.parent
LIMITS: Final = Limits(
    max_input_len=200, max_output_len=48, max_batch_size=4, max_multimodal_len=32, vision_max_batch_size=4
)


def build(store: Path) -> Path:
    """Build the engine and give its folder."""
    return tiny_families.build(Family.SALM, LlmType.LLAMA, LIMITS, store)


def cases() -> list[Case]:
    """The held-out sounds and questions."""
    return heldout.read(FOLDER / "heldout")
