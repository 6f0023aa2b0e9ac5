"""Megatron-core's GPT with Llama's settings → transformers' `LlamaForCausalLM`, or `MistralForCausalLM`.

Mistral has what Llama cannot hold: attention that looks back over a window, and any size of heads. Llama has biases.
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
    return decoder.rules(config, *decoder.GATED)


def _describe(config: LanguageConfig) -> JsonObject:
    return {
        "model_type": "llama",
        **decoder.sizes(config),
        **decoder.rope(config),
        "hidden_act": "silu",
        "rms_norm_eps": config.layernorm_epsilon,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def _describe_mistral(config: LanguageConfig) -> JsonObject:
    return {
        "model_type": "mistral",
        **decoder.sizes(config),
        **decoder.rope(config),
        "hidden_act": "silu",
        "rms_norm_eps": config.layernorm_epsilon,
        "sliding_window": config.window,
    }


_SHARED: Final = (
    need.ROPE,
    need.DENSE,
    need.RMSNORM,
    *need.SWIGLU,
    need.WHOLE_HEADS,
    need.UNSCALED,
    need.SEQUENTIAL,
)

LLAMA: Final = Architecture(
    name="LlamaForCausalLM",
    requirements=(*_SHARED, need.EVEN_HEADS, need.EVERYTHING),
    rules=_rules,
    describe=_describe,
)
MISTRAL: Final = Architecture(
    name="MistralForCausalLM",
    requirements=(*_SHARED, need.NO_BIAS),
    rules=_rules,
    describe=_describe_mistral,
)
