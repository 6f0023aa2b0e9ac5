"""Megatron-core's GPT with learned positions → transformers' `GPT2LMHeadModel`, or `GPTBigCodeForCausalLM`.

The two share names. GPT-2 has a key for every head, and stores its layers with rows for columns; GPTBigCode (StarCoder)
has one key for all heads, and its attention input is Megatron's for one group: all queries, the key, the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings import decoder, megatron
from multimodal_builder.mappings import requirements as need
from multimodal_builder.mappings.base import Rename, Transpose, TransposeQkv
from multimodal_builder.mappings.language_model import Architecture, JsonObject

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule

_LAYER: Final = "transformer.h.{n}"
_LINEARS: Final = {
    megatron.PROJECTION: f"{_LAYER}.attn.c_proj",
    megatron.FC1: f"{_LAYER}.mlp.c_fc",
    megatron.FC2: f"{_LAYER}.mlp.c_proj",
}
_QKV: Final = f"{_LAYER}.attn.c_attn"


def _outer(config: LanguageConfig) -> tuple[Rule, ...]:
    """Give the rules that both classes share: embeddings, norms and head."""
    norms = {
        megatron.INPUT_NORM: f"{_LAYER}.ln_1",
        megatron.MLP_NORM: f"{_LAYER}.ln_2",
        megatron.FINAL_NORM: "transformer.ln_f",
    }
    return (
        Rename(megatron.EMBEDDING, "transformer.wte.weight"),
        Rename(megatron.POSITIONS, "transformer.wpe.weight"),
        *(rule for source, target in norms.items() for rule in megatron.norm(config, source, target, centered=False)),
        Rename(megatron.HEAD, "lm_head.weight"),
        *megatron.IGNORED,
    )


def _gpt2_rules(config: LanguageConfig) -> tuple[Rule, ...]:
    kinds = ("weight", "bias")
    heads = config.num_attention_heads
    return (
        *(TransposeQkv(f"{megatron.QKV}.{kind}", f"{_QKV}.{kind}", heads=heads) for kind in kinds),
        *(Transpose(f"{source}.{kind}", f"{target}.{kind}") for source, target in _LINEARS.items() for kind in kinds),
        *_outer(config),
    )


def _bigcode_rules(config: LanguageConfig) -> tuple[Rule, ...]:
    linears = {megatron.QKV: _QKV} | _LINEARS
    return (
        *(rule for source, target in linears.items() for rule in megatron.linear(source, target)),
        *_outer(config),
    )


def _describe(config: LanguageConfig) -> JsonObject:
    return {
        "n_embd": config.hidden_size,
        "n_inner": config.ffn_hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_attention_heads,
        "activation_function": decoder.activation(config),
        "layer_norm_epsilon": config.layernorm_epsilon,
    }


_SHARED: Final = (
    need.LEARNED,
    need.DENSE,
    need.LAYERNORM,
    need.UNGATED,
    need.BIAS,
    need.USUAL_HEADS,
    need.EVERYTHING,
    need.UNSCALED,
    need.SEQUENTIAL,
)

GPT2: Final = Architecture(
    name="GPT2LMHeadModel",
    requirements=(
        *_SHARED,
        need.Requirement(
            "num_query_groups", lambda c: c.groups == c.num_attention_heads, "num_attention_heads or null"
        ),
    ),
    rules=_gpt2_rules,
    describe=lambda config: {"model_type": "gpt2", **_describe(config)},
    positions_key="n_positions",
)
GPT_BIGCODE: Final = Architecture(
    name="GPTBigCodeForCausalLM",
    requirements=(*_SHARED, need.Requirement("num_query_groups", lambda c: c.groups == 1, "1")),
    rules=_bigcode_rules,
    describe=lambda config: {"model_type": "gpt_bigcode", "multi_query": True, **_describe(config)},
    positions_key="n_positions",
)
