"""`recipe.json` of a canonical model: all that serving needs to know beside weights and tokenizer."""

from __future__ import annotations

import re
from enum import StrEnum
from math import isqrt
from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator

from multimodal_api.base import OpenModel
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.overrides import MEDIA_SLOT, TEXT_SLOT
from multimodal_api.reasons import Reason

RECIPE_NAME: Final = "recipe.json"
LLM_DIR: Final = "llm"
VISION_DIR: Final = "vision"
AUDIO_DIR: Final = "audio"
ADAPTER_DIR: Final = "adapter"
PROJECTOR_DIR: Final = "projector"


class PromptTemplate(OpenModel):
    """A conversation as text: `before`, then turns and answers, with `between` between an answer and the next turn.

    The strings are the training-time template of the checkpoint's `data.conv_template`, not that of NeMo's removed
    runner, wherever the two differ.
    """

    before: str
    """Text in front of the first turn: the system part."""
    turn: str
    """One user turn, up to where the answer begins; holds `{text}` once."""
    lead: str = ""
    """Text between a turn and its answer, where the answer is given: what the model itself writes first, and what is
    cut off from an answer when it is handed out."""
    between: str
    """Text between an answer and the next turn."""
    medium: str
    """How one medium stands in a user's content; holds `{media}` once."""
    default_text: str
    """What is asked when a client library asks nothing; the wire refuses an empty text."""

    @field_validator("turn")
    @classmethod
    def _one_place_for_the_text(cls, turn: str) -> str:
        return _with_one(TEXT_SLOT, turn)

    @field_validator("medium")
    @classmethod
    def _one_place_for_the_rows(cls, medium: str) -> str:
        return _with_one(MEDIA_SLOT, medium)


def _with_one(slot: str, text: str) -> str:
    if text.count(slot) != 1:
        raise ValueError(f"must hold {slot} exactly once")
    return text


class FrameResize(StrEnum):
    """How a picture becomes a square of `image_size`."""

    SHORTEST_EDGE_CROP = "shortest-edge-crop"
    """CLIP: shortest edge to `shortest_edge`, then centre crop to `image_size`, its margins in front rounded down."""
    SHORTEST_EDGE_CROP_ROUNDED = "shortest-edge-crop-rounded"
    """NeMo's own CLIP: the same, but half a pixel is rounded to the even number, as in torchvision."""
    SQUASH = "squash"
    """SigLIP: both edges to `image_size`, aspect ratio not kept."""
    PAD = "pad"
    """Expand to a square with the mean colour, content centred, then as CLIP."""
    KEEP = "keep"
    """Shortest edge to `shortest_edge`, or to less where the other would be more than twice that, and no crop. The
    tower takes what comes out only if it has the patches of `image_size`: pictures that are nearly square."""


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
    spare: Annotated[int, Field(ge=0)] = 0
    """Pixels beyond `image_size` that `keep` lets an edge have: they fill no patch, and the tower leaves them out."""

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


class FrameSampling(StrEnum):
    """Which frames of a video a model sees."""

    TRUNCATED = "truncated"
    """`num_frames` of them, evenly spaced from the first to the last, places rounded down; the last frame is repeated
    where the video has fewer."""
    ROUNDED = "rounded"
    """All of at most `num_frames`; of more, as many as make the step between them whole, places rounded."""


class VideoLayout(StrEnum):
    """In which order a video's features become rows of the prompt."""

    FRAMES = "frames"
    """All rows of the first frame, then all of the second, and so on."""
    TEMPORAL_SPATIAL_POOL = "temporal-spatial-pool"
    """One row per frame, its mean; then four frames, their grids averaged 2 by 2."""
    TEMPORAL_SPATIAL = "temporal-spatial"
    """One row per frame, its mean; then the mean of all frames."""
    TEMPORAL_ALL_RESOLUTION = "temporal-all-resolution"
    """`sample_frames` whole frames, each between its marks; then one row per frame, its mean, between the video's."""


class VideoRecipe(OpenModel):
    """How a video's frames are chosen, and how their rows stand in the prompt."""

    num_frames: Annotated[int, Field(ge=1)] | None
    """Most frames that are seen; None is all."""
    sampling: FrameSampling
    layout: VideoLayout
    sample_frames: Annotated[int, Field(ge=1)] = 4
    """Frames shown whole by `temporal-all-resolution`; evenly spaced among those seen, places rounded."""
    frame_start: str = ""
    """Text in front of the rows of a whole frame, and so on."""
    frame_end: str = ""
    video_start: str = ""
    video_end: str = ""


class VisionRecipe(OpenModel):
    """How pictures and videos become rows of prompt embeddings."""

    preprocessing: ImagePreprocessing
    select_layer: int
    """Index into the tower's hidden states; CLIP towers of NeVA: -2."""
    select_feature: FeatureSelect
    class_token_length: Annotated[int, Field(ge=0)]
    """Leading tokens that `patch` drops."""
    tokens_per_image: Annotated[int, Field(ge=1)]
    """Rows per picture or frame, after the projector."""
    video: VideoRecipe | None = None
    """Of families that take videos; None: each medium is one picture."""


class EdgePadding(StrEnum):
    """What stands before the first and behind the last sample where a spectrum's window reaches past them."""

    REFLECT = "reflect"
    """The samples mirrored: NeMo up to 2.4."""
    ZERO = "zero"
    """Silence: NeMo from 2.5 on."""


class MelFrontEnd(OpenModel):
    """From samples to the log-mel frames that a speech encoder takes; NeMo's `AudioToMelSpectrogramPreprocessor`.

    Fixed in all of them: a symmetric Hann window, centred frames, power spectra, mel bands of Slaney's shape and norm,
    and each band shifted and scaled to mean 0 and deviation 1 over its sound.
    """

    sample_rate: Annotated[int, Field(ge=1)]
    """In Hz."""
    window: Annotated[int, Field(ge=2)]
    """Samples of one frame."""
    hop: Annotated[int, Field(ge=1)]
    """Samples from one frame to the next."""
    fft: Annotated[int, Field(ge=2)]
    """Length of the Fourier transform; the window stands in its middle."""
    bands: Annotated[int, Field(ge=1)]
    """Mel bands."""
    low: Annotated[float, Field(ge=0)]
    """Lower edge of the first band, in Hz."""
    high: Annotated[float, Field(gt=0)]
    """Upper edge of the last band, in Hz."""
    preemphasis: Annotated[float, Field(ge=0, lt=1)]
    """Part of the sample before that is taken off each; 0 is none."""
    log_guard: Annotated[float, Field(gt=0)]
    """Added to energies before the logarithm; 2^-24."""
    padding: EdgePadding

    @model_validator(mode="after")
    def _the_sizes_fit(self) -> Self:
        if self.window > self.fft:
            raise ValueError(f"a window of {self.window} samples does not fit in a transform of {self.fft}")
        if not self.low < self.high <= self.sample_rate / 2:
            raise ValueError(f"bands from {self.low} to {self.high} Hz are none of a rate of {self.sample_rate} Hz")
        return self

    @property
    def shortest(self) -> int:
        """Fewest samples of a sound: two frames, whose deviation is a number, and enough to mirror."""
        return max(self.hop, self.fft // 2 + 1)

    def frames(self, samples: int) -> int:
        """Count the frames of a sound."""
        return samples // self.hop + 1


class AudioRecipe(OpenModel):
    """How sounds become rows of prompt embeddings."""

    mel: MelFrontEnd
    frames_per_row: Annotated[int, Field(ge=1)]
    """Mel frames that encoder and adapter make one row of; a last one may stand for fewer. SALM: 8 times 8."""

    def rows(self, samples: int) -> int:
        """Count the rows of a sound."""
        return -(-self.mel.frames(samples) // self.frames_per_row)


class TimeTokens(OpenModel):
    """Places in a video as tokens `<t0>` ... `<t(count-1)>`, from its beginning to its end."""

    count: Annotated[int, Field(ge=2)]


class ProjectorConfig(OpenModel):
    """`projector/config.json`; the weights beside it are named `mm_projector.<index>.{weight,bias}`."""

    kind: str
    """NeMo's `mm_mlp_adapter_type`, or NeMo 2's `projector_type`, one of `PROJECTOR_KINDS`."""
    input_size: Annotated[int, Field(ge=1)]
    """Width of the tower."""
    hidden_size: Annotated[int, Field(ge=1)]
    """Width of the language model."""

    @property
    def mlp_depth(self) -> int | None:
        """N of `mlp<N>x_gelu`, or None when the kind is another one."""
        match = _MLP.fullmatch(self.kind)
        return int(match[1]) if match else None

    def rows(self, tokens: int) -> int:
        """Give the rows that so many tokens of a picture become.

        Raises:
            ValueError: the kind joins squares of 2 by 2 tokens, and these tokens are no square.
        """
        if self.kind not in JOINING_KINDS:
            return tokens
        edge = isqrt(tokens)
        if edge * edge != tokens:
            raise ValueError(f"{tokens} tokens of a picture are no square, as {self.kind} needs it")
        return ((edge + 1) // 2) ** 2


JOINING_KINDS: Final = ("mlp_downsample", "vila_downsample_mlp")
"""Kinds that join 2 by 2 tokens: NeMo 1's gives the squares column by column, NeMo 2's line by line."""
PROJECTOR_KINDS: Final = f"linear, mlp<N>x_gelu, identity, {' or '.join(JOINING_KINDS)}"
_MLP: Final = re.compile(r"mlp([1-9][0-9]?)x_gelu")


class Recipe(OpenModel):
    """Everything but the weights; nothing downstream reads NeMo's files again."""

    family: Family
    template: PromptTemplate
    vision: VisionRecipe | None = None
    audio: AudioRecipe | None = None
    """Exactly one of the two is there."""
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
    time_tokens: TimeTokens | None = None
    """Of models that were trained to say when."""

    @model_validator(mode="after")
    def _one_modality(self) -> Self:
        if (self.vision is None) == (self.audio is None):
            raise ValueError("exactly one of vision and audio must be there")
        return self

    def seeing(self) -> VisionRecipe:
        """Give the vision recipe of a family that has one.

        Raises:
            ProductError: the family hears.
        """
        if self.vision is None:
            raise ProductError(
                Reason.UNSUPPORTED_MODEL,
                at=RECIPE_NAME,
                problem=f"a model of the family {self.family} takes audio, no pictures",
                remedy="give it audio, or use a model of a family that sees",
            )
        return self.vision

    def hearing(self) -> AudioRecipe:
        """Give the audio recipe of a family that has one.

        Raises:
            ProductError: the family sees.
        """
        if self.audio is None:
            raise ProductError(
                Reason.UNSUPPORTED_MODEL,
                at=RECIPE_NAME,
                problem=f"a model of the family {self.family} takes pictures, no audio",
                remedy="give it pictures, or use a model of a family that hears",
            )
        return self.audio
