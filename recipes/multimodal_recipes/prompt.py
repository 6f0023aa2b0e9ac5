"""Prompts: a conversation as text and media, and the token ids made of it, with media positions kept out of band."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from multimodal_api.overrides import MEDIA_SLOT, TEXT_SLOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from multimodal_recipes.recipe import PromptTemplate


@dataclass(frozen=True, slots=True)
class MediaSlot:
    """A place of media rows in a prompt."""

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
    """One for each slot, in their order, without overlap."""

    @property
    def media_length(self) -> int:
        """Positions that media take."""
        return sum(span.length for span in self.media)


FILLER = 0
"""Id written at media positions, whose embedding is overwritten; as text, the same id is an ordinary token."""


@dataclass(frozen=True, slots=True)
class Medium:
    """One picture, video or recording in a user's content; `multimodal_recipes.layout` makes it."""

    parts: tuple[str | MediaSlot, ...]
    """Its rows and the texts that stand between them, in order."""

    @property
    def slots(self) -> tuple[MediaSlot, ...]:
        """Its places; the spans of a tokenised prompt are those of all media, one after the other."""
        return tuple(part for part in self.parts if isinstance(part, MediaSlot))

    @property
    def rows(self) -> int:
        """Rows of prompt embeddings that it takes."""
        return sum(slot.rows for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user said, and what was answered."""

    content: tuple[str | Medium, ...]
    """In order; media that the user gave no place stand in front."""
    answer: str | None = None
    """None where the model is asked for it."""


def place_media(text: str, media: Sequence[Medium]) -> tuple[str | Medium, ...]:
    """Put media where NeMo's clients mark their places: `<image>` or `<video>` in the text.

    For interfaces that have nothing but a text; one whose messages have parts gives media their places itself. A line
    break behind a mark is the one that the template puts there, as in training's texts.

    Args:
        text: What the user wrote. Marks beyond the number of media stay text.
        media: In order; those without a mark stand in front of all text.

    Returns:
        The content of a turn.
    """
    marks = list(_MARK.finditer(text))[: len(media)]
    without = len(media) - len(marks)
    content: list[str | Medium] = list(media[:without])
    at = 0
    for mark, medium in zip(marks, media[without:], strict=True):
        content += [text[at : mark.start()], medium]
        at = mark.end()
    content.append(text[at:])
    return tuple(part for part in content if part != "")


_MARK: Final = re.compile("<(?:image|video)>\n?")


def render(template: PromptTemplate, turns: Sequence[Turn]) -> tuple[str | MediaSlot, ...]:
    """Put a conversation into a template.

    Args:
        template: The model's.
        turns: All but the last have an answer. What a user wrote is text wherever it stands: it is never searched for
            slots or braces.

    Returns:
        Text and media slots, in order; no two texts side by side, none empty.

    Raises:
        ValueError: a turn before the last has no answer.
    """
    if any(turn.answer is None for turn in turns[:-1]):
        raise ValueError("every turn before the last must have an answer")
    parts: list[str | MediaSlot] = [template.before]
    for number, turn in enumerate(turns):
        if number:
            parts.append(template.between)
        ahead, _, behind = template.turn.partition(TEXT_SLOT)
        parts.append(ahead)
        for content in turn.content:
            parts += [content] if isinstance(content, str) else _place(template, content)
        parts.append(behind)
        if turn.answer is not None:
            parts.append(template.lead + turn.answer)
    return tuple(_joined(parts))


def _place(template: PromptTemplate, medium: Medium) -> tuple[str | MediaSlot, ...]:
    ahead, _, behind = template.medium.partition(MEDIA_SLOT)
    return (ahead, *medium.parts, behind)


def _joined(parts: Iterable[str | MediaSlot]) -> Iterator[str | MediaSlot]:
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        if not is_text:
            yield from group
        elif text := "".join(str(part) for part in group):
            yield text
