"""The model families and language-model types that NeMo's exporter knew."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Family(StrEnum):
    """Values of `spec.model.type`, spelled as NeMo's `--model_type`."""

    NEVA = "neva"
    VIDEO_NEVA = "video-neva"
    LITA = "lita"
    VITA = "vita"
    VILA = "vila"
    SALM = "salm"


class Modality(StrEnum):
    """What the media encoder takes, spelled as NeMo's `--modality`."""

    VISION = "vision"
    AUDIO = "audio"


class LlmType(StrEnum):
    """Values of `spec.model.llmType`, spelled as NeMo's `--llm_model_type`."""

    GPTNEXT = "gptnext"
    GPT = "gpt"
    LLAMA = "llama"
    FALCON = "falcon"
    STARCODER = "starcoder"
    MIXTRAL = "mixtral"
    GEMMA = "gemma"


class FamilyFacts(NamedTuple):
    """What the resource needs to know of a family."""

    modality: Modality
    vision_max_batch_size: int
    """Default of `limits.visionMaxBatchSize`: lita and vita encode every frame of a video in one batch."""
    watches: bool = False
    """Whether it takes videos."""


FAMILIES: Final = {
    Family.NEVA: FamilyFacts(Modality.VISION, 1),
    Family.VIDEO_NEVA: FamilyFacts(Modality.VISION, 1, watches=True),
    Family.LITA: FamilyFacts(Modality.VISION, 256, watches=True),
    Family.VITA: FamilyFacts(Modality.VISION, 256, watches=True),
    Family.VILA: FamilyFacts(Modality.VISION, 1),
    Family.SALM: FamilyFacts(Modality.AUDIO, 1),
}
