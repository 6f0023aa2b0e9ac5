"""What a deployment may change of a model's recipe: it decides prompts and pixels, and no byte of the engine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from multimodal_api.base import Model

TEXT_SLOT = "{text}"
"""Where a user's content stands in a turn; found as it is, the template is never a Python format string."""
MEDIA_SLOT = "{media}"
"""Where the rows of one medium stand in `PromptTemplate.medium`."""

Piece = Annotated[str, StringConstraints(max_length=16_384)]


class TemplateOverrides(Model):
    """Pieces of the prompt template that replace those of the checkpoint's training; what is left out stays."""

    before: Piece | None = None
    """Text in front of the first turn: the system part."""
    turn: Piece | None = None
    """One user turn, up to where the answer begins; the user's text stands where it holds `{text}`, once."""
    lead: Piece | None = None
    """Text between a turn and an answer that is given."""
    between: Piece | None = None
    """Text between an answer and the next turn."""
    medium: Piece | None = None
    """How one medium stands in a user's content; its rows stand where it holds `{media}`, once."""
    default_text: Annotated[str, StringConstraints(min_length=1, max_length=16_384)] | None = None
    """What the server asks itself before it is ready."""


class PromptOverrides(Model):
    """How conversations become prompts, where not as in the checkpoint's training."""

    template: TemplateOverrides = TemplateOverrides()
    """Pieces of the prompt template that replace those of the checkpoint's training; what is left out stays."""
    stop_strings: (
        Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=16)] | None
    ) = None
    """Texts that end an answer, in place of those of the training."""


class PictureResize(StrEnum):
    """Values of `spec.preprocessing.resize`."""

    CROP = "shortest-edge-crop"
    PAD = "pad"
    SQUASH = "squash"


class PreprocessingOverrides(Model):
    """How pictures and videos are prepared, where not as in the checkpoint's training."""

    resize: PictureResize | None = None
    """How a picture becomes a square: shortest-edge-crop leaves its margins out, pad adds some, squash distorts it."""
    num_frames: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Most frames of a video that the model sees."""


class Overrides(Model):
    """All of them, as the server is told."""

    prompt: PromptOverrides = PromptOverrides()
    preprocessing: PreprocessingOverrides = PreprocessingOverrides()
