"""Small configurations of NeMo's, as the reader gives them; no torch."""

from __future__ import annotations

from typing import Any

from multimodal_builder.checkpoints.config import ModelConfig


def model_config(**changes: Any) -> ModelConfig:
    """Give a Llama of two layers; every key can be another."""
    settings: dict[str, Any] = {
        "mcore_gpt": True,
        "num_layers": 2,
        "hidden_size": 8,
        "ffn_hidden_size": 12,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "encoder_seq_length": 64,
        "max_position_embeddings": 64,
        "layernorm_epsilon": 1e-5,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "bias": False,
        "position_embedding_type": "rope",
        "share_embeddings_and_output_weights": False,
        "mm_cfg": {"vision_encoder": {"from_pretrained": "clip"}},
        "tokenizer": {"library": "sentencepiece"},
    }
    return ModelConfig.model_validate(settings | changes)
