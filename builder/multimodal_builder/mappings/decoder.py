"""What transformers' rotary decoders share: the names that Llama brought, and the description of rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multimodal_builder.mappings import megatron
from multimodal_builder.mappings.base import Rename

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule

LAYER: Final = "model.layers.{n}"
GATED: Final = (
    *megatron.split_gated(megatron.FC1, f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"),
    *megatron.linear(megatron.FC2, f"{LAYER}.mlp.down_proj"),
)
"""The feed-forward block that has a gate."""


def rules(config: LanguageConfig, *feed_forward: Rule, centered: bool = False) -> tuple[Rule, ...]:
    """Give the table of everything but the feed-forward block.

    Args:
        config: NeMo's.
        feed_forward: The rules of that block.
        centered: Whether transformers' class takes the weights of norms less one.
    """
    norms = {
        megatron.INPUT_NORM: f"{LAYER}.input_layernorm",
        megatron.MLP_NORM: f"{LAYER}.post_attention_layernorm",
        megatron.FINAL_NORM: "model.norm",
    }
    return (
        Rename(megatron.EMBEDDING, "model.embed_tokens.weight"),
        *megatron.split_qkv(config, f"{LAYER}.self_attn"),
        *megatron.linear(megatron.PROJECTION, f"{LAYER}.self_attn.o_proj"),
        *feed_forward,
        *(
            rule
            for source, target in norms.items()
            for rule in megatron.norm(config, source, target, centered=centered)
        ),
        Rename(megatron.HEAD, "lm_head.weight"),
        *megatron.IGNORED,
    )


def sizes(config: LanguageConfig) -> dict[str, Any]:
    """Give the numbers under the keys that these classes share."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.groups,
        "head_dim": config.head_size,
    }


def rope(config: LanguageConfig) -> dict[str, Any]:
    """Describe rotary positions."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.scale_positional_embedding:
        parameters |= {
            "rope_type": "llama3",
            "factor": config.scale_factor,
            "low_freq_factor": config.low_freq_factor,
            "high_freq_factor": config.high_freq_factor,
            "original_max_position_embeddings": config.old_context_len,
        }
    elif config.seq_len_interpolation_factor not in {None, 1}:
        parameters |= {"rope_type": "linear", "factor": config.seq_len_interpolation_factor}
    return {"rope_theta": config.rotary_base, "rope_parameters": parameters}


def activation(config: LanguageConfig) -> str:
    """Give transformers' name of an activation without a gate; the tanh approximation has a key of its own."""
    if config.openai_gelu:
        return "gelu_pytorch_tanh"
    return {"gelu": "gelu", "squared-relu": "relu2"}[config.activation]
