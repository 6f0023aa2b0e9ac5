"""Megatron-core's GPT with StarCoder2's settings → transformers' `Starcoder2ForCausalLM`."""

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
        *megatron.linear(megatron.FC1, f"{decoder.LAYER}.mlp.c_fc"),
        *megatron.linear(megatron.FC2, f"{decoder.LAYER}.mlp.c_proj"),
    )


def _describe(config: LanguageConfig) -> JsonObject:
    return {
        "model_type": "starcoder2",
        **decoder.sizes(config),
        **decoder.rope(config),
        "hidden_act": decoder.activation(config),
        "norm_epsilon": config.layernorm_epsilon,
        "use_bias": config.bias,
        "sliding_window": config.window,
    }


STARCODER2: Final = Architecture(
    name="Starcoder2ForCausalLM",
    requirements=(
        need.ROPE,
        need.DENSE,
        need.one_of("normalization", ("layernorm", "low_precision_layernorm")),
        need.one_of("layernorm_zero_centered_gamma", (False,)),
        need.UNGATED,
        need.WHOLE_HEADS,
        need.USUAL_HEADS,
        need.UNSCALED,
        need.SEQUENTIAL,
    ),
    rules=_rules,
    describe=_describe,
)
