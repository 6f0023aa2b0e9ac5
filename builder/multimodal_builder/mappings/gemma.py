"""Megatron-core's GPT with Gemma's settings → transformers' `GemmaForCausalLM`.

Norms: NeMo stores the factor, transformers the factor less one. The scale of the embeddings is in no weight:
transformers multiplies what it looks up itself, training also multiplied the media rows (see
`multimodal_modeling.llm`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings import decoder
from multimodal_builder.mappings import requirements as need
from multimodal_builder.mappings.language_model import Architecture, JsonObject

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule


def _rules(config: LanguageConfig) -> tuple[Rule, ...]:
    return decoder.rules(config, *decoder.GATED, centered=True)


def _describe(config: LanguageConfig) -> JsonObject:
    return {
        "model_type": "gemma",
        **decoder.sizes(config),
        **decoder.rope(config),
        "hidden_act": decoder.activation(config),
        "rms_norm_eps": config.layernorm_epsilon,
        "attention_bias": False,
    }


GEMMA: Final = Architecture(
    name="GemmaForCausalLM",
    requirements=(
        need.ROPE,
        need.DENSE,
        need.RMSNORM,
        need.one_of("activation", ("geglu", "fast-geglu")),
        need.one_of("openai_gelu", (True,)),
        need.NO_BIAS,
        need.WHOLE_HEADS,
        need.EVERYTHING,
        need.one_of("apply_embedding_scaling", (None, True)),
        need.SEQUENTIAL,
    ),
    rules=_rules,
    describe=_describe,
)
