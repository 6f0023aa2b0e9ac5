"""Prompts: a user turn as text and media, and the token ids made of it, with media positions kept out of band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from multimodal_recipes.recipe import TEXT_SLOT

if TYPE_CHECKING:
    from multimodal_recipes.recipe import PromptTemplate


@dataclass(frozen=True, slots=True)
class MediaSlot:
    """The place of one picture in a prompt."""

    rows: int
    """Rows of prompt embeddings that it takes."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive positions of a prompt that hold media rows."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a whole prompt."""

    ids: tuple[int, ...]
    """One per position. At media positions stands `FILLER`; only `media` says which positions those are."""
    media: tuple[Span, ...]
    """In order of the pictures, without overlap."""

    @property
    def media_length(self) -> int:
        """Positions that media take."""
        return sum(span.length for span in self.media)


FILLER = 0
"""Id written at media positions, whose embedding is overwritten; as text, the same id is an ordinary token."""


def render(template: PromptTemplate, text: str, *, rows: int) -> tuple[str | MediaSlot, ...]:
    """Put a user's text into the template of one turn with one picture.

    Args:
        template: the family's turn.
        text: what the user wrote. It is text wherever it stands: it is never searched for slots or braces.
        rows: rows of prompt embeddings that the picture takes.

    Returns:
        Text and media slots, in order.
    """
    ahead, _, behind = template.after.partition(TEXT_SLOT)
    return (template.before, MediaSlot(rows), f"{ahead}{text}{behind}")
