"""`recipe.json` of a canonical model: all that serving needs to know beside weights and tokenizer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator

from multimodal_api.base import OpenModel
from multimodal_api.families import Family

RECIPE_NAME: Final = "recipe.json"
LLM_DIR: Final = "llm"
VISION_DIR: Final = "vision"
PROJECTOR_DIR: Final = "projector"
TEXT_SLOT: Final = "{text}"
"""Where the user's text stands in a template; found as it is, the template is never a Python format string."""


class PromptTemplate(OpenModel):
    """One user turn: `before` + media + `after.format(text)`, where `{text}` stands for the user's text.

    The strings are the training-time template of the checkpoint's `data.conv_template`, not that of NeMo's removed
    runner, wherever the two differ.
    """

    before: str
    """Text in front of the media."""
    after: str
    """Text behind the media; holds `{text}` once."""
    default_text: str
    """What is asked when a client library asks nothing; the wire refuses an empty text."""

    @field_validator("after")
    @classmethod
    def _one_place_for_the_text(cls, after: str) -> str:
        if after.count(TEXT_SLOT) != 1:
            raise ValueError(f"must hold {TEXT_SLOT} exactly once")
        return after


class FrameResize(StrEnum):
    """How a picture becomes a square of `image_size`."""

    SHORTEST_EDGE_CROP = "shortest-edge-crop"
    """CLIP: shortest edge to `shortest_edge`, then centre crop to `image_size`."""
    SQUASH = "squash"
    """SigLIP: both edges to `image_size`, aspect ratio not kept."""
    PAD = "pad"
    """Expand to a square with the mean colour, content centred, then as CLIP."""


class ImagePreprocessing(OpenModel):
    """From RGB bytes to the tower's pixels; equals the Hugging Face processor of the tower."""

    resize: FrameResize
    shortest_edge: Annotated[int, Field(ge=1)]
    """Edge after the resize, in pixels."""
    image_size: Annotated[int, Field(ge=1)]
    """Edge of the square that the tower takes, in pixels."""
    resample: Annotated[int, Field(ge=0, le=5)]
    """PIL resampling filter; 3 is bicubic."""
    rescale: float
    """Factor before normalisation; 1/255."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _the_crop_fits(self) -> Self:
        if self.resize is not FrameResize.SQUASH and self.shortest_edge < self.image_size:
            raise ValueError(f"a crop of {self.image_size} pixels does not fit in an edge of {self.shortest_edge}")
        return self


class FeatureSelect(StrEnum):
    """Which of the tower's tokens the projector takes."""

    PATCH = "patch"
    """Without the leading class tokens."""
    CLS_PATCH = "cls_patch"
    """All."""


class VisionRecipe(OpenModel):
    """How pictures become rows of prompt embeddings."""

    preprocessing: ImagePreprocessing
    select_layer: int
    """Index into the tower's hidden states; CLIP towers of NeVA: -2."""
    select_feature: FeatureSelect
    class_token_length: Annotated[int, Field(ge=0)]
    """Leading tokens that `patch` drops."""
    tokens_per_image: Annotated[int, Field(ge=1)]
    """Rows of the prompt per picture, after the projector."""


class ProjectorConfig(OpenModel):
    """`projector/config.json`; the weights beside it are named `mm_projector.<index>.{weight,bias}`."""

    kind: str
    """NeMo's `mm_mlp_adapter_type`: `linear`, `mlp<N>x_gelu`, …"""
    input_size: Annotated[int, Field(ge=1)]
    """Width of the tower."""
    hidden_size: Annotated[int, Field(ge=1)]
    """Width of the language model."""


class Recipe(OpenModel):
    """Everything but the weights; nothing downstream reads NeMo's files again."""

    family: Family
    template: PromptTemplate
    vision: VisionRecipe
    vocab_size: Annotated[int, Field(ge=1)]
    """Size of the tokenizer: ids at or above it are padding rows of the embedding and are never sampled."""
    eos_token_ids: tuple[int, ...]
    """Ids that end an answer, and are not part of it."""
    stop_strings: tuple[str, ...]
    """Text that ends an answer, and is not part of it."""
    add_bos: bool
    """Whether the beginning-of-sequence token stands in front of the prompt; no NeVA template has it."""
    max_positions: Annotated[int, Field(ge=1)]
    """Longest sequence, prompt and answer, that the language model was made for."""
