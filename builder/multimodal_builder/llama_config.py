"""`llm/config.json` and its companions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import ModelConfig
    from multimodal_builder.mappings.llama import LlamaShape

JsonObject = dict[str, Any]


def llama_config(config: ModelConfig, shape: LlamaShape, *, bos: int | None, eos: int) -> JsonObject:
    """Describe a Llama to transformers, 4 and 5; the type of the weights is added when they are written.

    Args:
        config: NeMo's.
        shape: Sizes.
        bos: Id of the beginning of a sequence.
        eos: Id of its end.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.rows,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.positions,
        "rms_norm_eps": config.layernorm_epsilon,
        "rope_theta": config.rotary_base,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }


def generation_config(*, bos: int | None, eos: int) -> JsonObject:
    """Describe greedy generation, NeMo's default on the wire."""
    return {"bos_token_id": bos, "eos_token_id": eos, "do_sample": False}
