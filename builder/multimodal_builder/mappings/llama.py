"""Megatron-core's GPT with Llama's settings → transformers' `LlamaForCausalLM`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings import megatron
from multimodal_builder.mappings.base import Rename
from multimodal_builder.mappings.language_model import Architecture, JsonObject, one_of

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule

LAYER: Final = "model.layers.{n}"


def _rules(config: LanguageConfig) -> tuple[Rule, ...]:
    return (
        Rename(megatron.EMBEDDING, "model.embed_tokens.weight"),
        *megatron.norm(megatron.INPUT_NORM, f"{LAYER}.input_layernorm"),
        *megatron.split_qkv(config, f"{LAYER}.self_attn.{{part}}_proj"),
        *megatron.linear(megatron.PROJECTION, f"{LAYER}.self_attn.o_proj"),
        *megatron.norm(megatron.MLP_NORM, f"{LAYER}.post_attention_layernorm"),
        *megatron.split_gated(f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"),
        *megatron.linear(megatron.FC2, f"{LAYER}.mlp.down_proj"),
        *megatron.linear(megatron.FINAL_NORM, "model.norm"),
        Rename(megatron.HEAD, "lm_head.weight"),
        *megatron.IGNORED,
    )


def _describe(config: LanguageConfig) -> JsonObject:
    return {
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.groups,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.positions,
        "rms_norm_eps": config.layernorm_epsilon,
        "rope_theta": config.rotary_base,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


LLAMA: Final = Architecture(
    name="LlamaForCausalLM",
    requirements=(
        one_of("num_moe_experts", (None, 0)),
        one_of("normalization", ("rmsnorm",)),
        one_of("layernorm_zero_centered_gamma", (False,)),
        one_of("activation", ("swiglu", "fast-swiglu")),
        one_of("position_embedding_type", ("rope",)),
        one_of("rotary_percentage", (1.0,)),
    ),
    rules=_rules,
    describe=_describe,
)
