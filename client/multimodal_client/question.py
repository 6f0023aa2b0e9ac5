"""What is asked, whichever protocol it goes over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_api.families import Family
    from multimodal_client.media import Media


class Wishes(TypedDict, total=False):
    """How an answer is to be made. What is absent or None is left to the server's defaults: 30 tokens, greedy.

    Attributes:
        max_output_len: longest answer, in tokens.
        top_k: sample from the best so many tokens; 1 is greedy.
        top_p: sample from the best tokens that have this probability together; 0 is off.
        temperature: divides the logits.
        repetition_penalty: above 1 avoids words that were said.
        num_beams: 1; the server refuses others.
        lora_uids: "-1"; the server refuses others.
    """

    max_output_len: int | None
    top_k: int | None
    top_p: float | None
    temperature: float | None
    repetition_penalty: float | None
    num_beams: int | None
    lora_uids: Sequence[str] | None


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
