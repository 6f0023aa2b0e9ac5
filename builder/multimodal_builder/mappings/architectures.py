"""Which of transformers' classes can hold which `llmType`, and the choice among them by a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.families import LlmType
from multimodal_builder.mappings.llama import LLAMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.language_model import Architecture

ARCHITECTURES: Final[Mapping[LlmType, tuple[Architecture, ...]]] = {LlmType.LLAMA: (LLAMA,)}
"""Of each type, the first that holds a configuration is taken."""


def nearest(config: LanguageConfig, llm_type: LlmType) -> Architecture:
    """Give the type's architecture that has the least against a configuration: nothing, if the type is right."""
    return min(ARCHITECTURES[llm_type], key=lambda architecture: len(architecture.broken(config)))


def fitting_types(config: LanguageConfig) -> tuple[LlmType, ...]:
    """List the types that hold a configuration."""
    return tuple(llm_type for llm_type in ARCHITECTURES if not nearest(config, llm_type).broken(config))
