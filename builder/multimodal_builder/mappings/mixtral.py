"""Megatron-core's GPT with experts → transformers' `MixtralForCausalLM`.

Its checkpoints name every expert apart: w1 goes through the activation, w3 does not, w2 leads back. The router scores
the experts, takes the best and weighs them by a softmax over those alone, as Megatron-core does by default.
`moe_router_pre_softmax`, which NeMo's converter writes into a language model's checkpoint, says otherwise; NeVA is
trained with its own settings, so that it counts there alone (`multimodal_builder.checks`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings import decoder, megatron
from multimodal_builder.mappings import requirements as need
from multimodal_builder.mappings.language_model import Architecture, JsonObject

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule

_MOE: Final = f"{decoder.LAYER}.block_sparse_moe"
_EXPERT: Final = f"{_MOE}.experts.{{e}}"


def _rules(config: LanguageConfig) -> tuple[Rule, ...]:
    return decoder.rules(
        config,
        *megatron.linear(megatron.ROUTER, f"{_MOE}.gate"),
        *megatron.split_gated(f"{megatron.EXPERT}.linear_fc1", f"{_EXPERT}.w1", f"{_EXPERT}.w3"),
        *megatron.linear(f"{megatron.EXPERT}.linear_fc2", f"{_EXPERT}.w2"),
    )


def _describe(config: LanguageConfig) -> JsonObject:
    return {
        "model_type": "mixtral",
        **decoder.sizes(config),
        **decoder.rope(config),
        "hidden_act": "silu",
        "rms_norm_eps": config.layernorm_epsilon,
        "num_local_experts": config.num_moe_experts,
        "num_experts_per_tok": config.moe_router_topk,
        "sliding_window": config.window,
    }


MIXTRAL: Final = Architecture(
    name="MixtralForCausalLM",
    requirements=(
        need.ROPE,
        need.EXPERTS,
        need.RMSNORM,
        *need.SWIGLU,
        need.NO_BIAS,
        need.WHOLE_HEADS,
        need.UNSCALED,
        need.SEQUENTIAL,
    ),
    rules=_rules,
    describe=_describe,
)
