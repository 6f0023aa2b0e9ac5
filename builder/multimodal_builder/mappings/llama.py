"""Megatron-core's GPT with Llama's settings → transformers' `LlamaForCausalLM`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from multimodal_builder.mappings.base import Ignore, Rename, Rule, Shape, SplitGated, SplitQkv, per_layer

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import ModelConfig


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The sizes that decide names and shapes."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_size: int
    rows: int
    """Of the embedding: the tokenizer's size and padding."""
    tied: bool
    """Whether the head is the embedding."""

    @classmethod
    def from_config(cls, config: ModelConfig, *, rows: int) -> LlamaShape:
        """Take them from NeMo's configuration and the embedding's rows."""
        return cls(
            layers=config.num_layers,
            hidden=config.hidden_size,
            ffn=config.ffn_hidden_size,
            heads=config.num_attention_heads,
            groups=config.groups,
            head_size=config.head_size,
            rows=rows,
            tied=config.share_embeddings_and_output_weights,
        )


EMBEDDING = "model.embedding.word_embeddings.weight"


def rules(shape: LlamaShape) -> tuple[Rule, ...]:
    """The table. Norms have two spellings: Transformer Engine fuses them into the layer behind, the local spec not."""
    ours, theirs = "model.layers.{n}", "model.decoder.layers.{n}"
    return (
        Rename(EMBEDDING, "model.embed_tokens.weight"),
        Rename(f"{theirs}.self_attention.linear_qkv.layer_norm_weight", f"{ours}.input_layernorm.weight"),
        Rename(f"{theirs}.input_layernorm.weight", f"{ours}.input_layernorm.weight"),
        SplitQkv(
            f"{theirs}.self_attention.linear_qkv.weight",
            query=f"{ours}.self_attn.q_proj.weight",
            key=f"{ours}.self_attn.k_proj.weight",
            value=f"{ours}.self_attn.v_proj.weight",
            heads=shape.heads,
            groups=shape.groups,
        ),
        Rename(f"{theirs}.self_attention.linear_proj.weight", f"{ours}.self_attn.o_proj.weight"),
        Rename(f"{theirs}.mlp.linear_fc1.layer_norm_weight", f"{ours}.post_attention_layernorm.weight"),
        Rename(f"{theirs}.pre_mlp_layernorm.weight", f"{ours}.post_attention_layernorm.weight"),
        SplitGated(
            f"{theirs}.mlp.linear_fc1.weight", gate=f"{ours}.mlp.gate_proj.weight", up=f"{ours}.mlp.up_proj.weight"
        ),
        Rename(f"{theirs}.mlp.linear_fc2.weight", f"{ours}.mlp.down_proj.weight"),
        Rename("model.decoder.final_layernorm.weight", "model.norm.weight"),
        Rename("model.output_layer.weight", "lm_head.weight"),
        Ignore("model.*._extra_state*", why="scales of Transformer Engine's 8-bit arithmetic, empty without it"),
        Ignore("model.rotary_pos_emb.inv_freq", why="computed from the configuration"),
    )


def parameters(shape: LlamaShape) -> dict[str, Shape]:
    """Names and shapes of `LlamaForCausalLM`."""
    queries, shared = shape.heads * shape.head_size, shape.groups * shape.head_size
    layer = "model.layers.{n}"
    named: dict[str, Shape] = {
        "model.embed_tokens.weight": (shape.rows, shape.hidden),
        f"{layer}.input_layernorm.weight": (shape.hidden,),
        f"{layer}.self_attn.q_proj.weight": (queries, shape.hidden),
        f"{layer}.self_attn.k_proj.weight": (shared, shape.hidden),
        f"{layer}.self_attn.v_proj.weight": (shared, shape.hidden),
        f"{layer}.self_attn.o_proj.weight": (shape.hidden, queries),
        f"{layer}.post_attention_layernorm.weight": (shape.hidden,),
        f"{layer}.mlp.gate_proj.weight": (shape.ffn, shape.hidden),
        f"{layer}.mlp.up_proj.weight": (shape.ffn, shape.hidden),
        f"{layer}.mlp.down_proj.weight": (shape.hidden, shape.ffn),
        "model.norm.weight": (shape.hidden,),
    }
    if not shape.tied:
        named["lm_head.weight"] = (shape.rows, shape.hidden)
    return dict(per_layer(named, shape.layers))
