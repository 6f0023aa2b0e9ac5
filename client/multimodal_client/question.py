"""What is asked, whichever protocol it goes over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_api.families import Family
    from multimodal_client.media import Media


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one medium. Of the numbers what is None is left to the server."""

    text: str
    medium: Media
    family: Family
    batch_size: int | None = None
    max_output_len: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None
    lora_uids: Sequence[str] | None = None
    tell_seconds: bool = True
    """Whether moments of a video are seconds in question and answer; else the model's time tokens stay."""
