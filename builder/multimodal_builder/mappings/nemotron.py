"""Megatron-core's GPT with Nemotron's settings → transformers' `NemotronForCausalLM`.

Both store the weights of a layernorm1p less one. The class also holds plain layernorms with its other settings:
any part of a head rotated, any size of heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings import decoder, megatron
from multimodal_builder.mappings import requirements as need
from multimodal_builder.mappings.language_model import Architecture, JsonObject

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule


def _rules(config: LanguageConfig) -> tuple[Rule, ...]:
    return decoder.rules(
        config,
        *megatron.linear(megatron.FC1, f"{decoder.LAYER}.mlp.up_proj"),
        *megatron.linear(megatron.FC2, f"{decoder.LAYER}.mlp.down_proj"),
        centered=True,
    )


def _describe(config: LanguageConfig) -> JsonObject:
    rope = decoder.rope(config)
    rope["rope_parameters"]["partial_rotary_factor"] = config.rotary_percentage
    return {
        "model_type": "nemotron",
        **decoder.sizes(config),
        **rope,
        "partial_rotary_factor": config.rotary_percentage,
        "hidden_act": decoder.activation(config),
        "norm_eps": config.layernorm_epsilon,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


NEMOTRON: Final = Architecture(
    name="NemotronForCausalLM",
    requirements=(
        need.ROPE,
        need.DENSE,
        need.LAYERNORM,
        need.UNGATED,
        need.EVERYTHING,
        need.UNSCALED,
        need.SEQUENTIAL,
    ),
    rules=_rules,
    describe=_describe,
)
