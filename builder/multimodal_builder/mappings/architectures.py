"""Which of transformers' classes can hold which `llmType`, and the choice among them by a configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from multimodal_api.families import LlmType
from multimodal_builder.mappings.falcon import FALCON
from multimodal_builder.mappings.gemma import GEMMA
from multimodal_builder.mappings.gpt2 import GPT2, GPT_BIGCODE
from multimodal_builder.mappings.llama import LLAMA, MISTRAL
from multimodal_builder.mappings.mixtral import MIXTRAL
from multimodal_builder.mappings.nemotron import NEMOTRON
from multimodal_builder.mappings.starcoder2 import STARCODER2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.language_model import Architecture

_GPT: Final = (STARCODER2, NEMOTRON, GPT2, GPT_BIGCODE)
"""NeMo's exporter takes the three types that have these for one, too."""

ARCHITECTURES: Final[Mapping[LlmType, tuple[Architecture, ...]]] = {
    LlmType.LLAMA: (LLAMA, MISTRAL),
    LlmType.MIXTRAL: (MIXTRAL,),
    LlmType.GEMMA: (GEMMA,),
    LlmType.FALCON: (FALCON,),
    LlmType.GPTNEXT: _GPT,
    LlmType.GPT: _GPT,
    LlmType.STARCODER: _GPT,
}
"""Of each type, the first that holds a configuration is taken."""


def nearest(config: LanguageConfig, llm_type: LlmType) -> Architecture:
    """Give the type's architecture that holds a configuration, or else the one that this was probably made for.

    Requirements stand in their tables with what defines a class first: the later one is broken, the nearer the class.
    """

    def held(architecture: Architecture) -> float:
        holds = (requirement.holds(config) for requirement in architecture.requirements)
        return next((number for number, held in enumerate(holds) if not held), math.inf)

    return max(ARCHITECTURES[llm_type], key=held)


def fitting_types(config: LanguageConfig) -> tuple[LlmType, ...]:
    """List the types that hold a configuration."""
    return tuple(llm_type for llm_type in ARCHITECTURES if not nearest(config, llm_type).broken(config))
