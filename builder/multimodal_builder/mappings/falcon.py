"""Megatron-core's GPT with NeMo's Falcon layers → transformers' `FalconForCausalLM`.

Attention and feed-forward block both read the layer's input: through one norm in the old architecture, through one
each in the new. The fused attention input has Megatron's order in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings import decoder, megatron
from multimodal_builder.mappings import requirements as need
from multimodal_builder.mappings.base import Rename
from multimodal_builder.mappings.language_model import Architecture, JsonObject

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule

_LAYER: Final = "transformer.h.{n}"
_LINEARS: Final = {
    megatron.QKV: f"{_LAYER}.self_attention.query_key_value",
    megatron.PROJECTION: f"{_LAYER}.self_attention.dense",
    megatron.FC1: f"{_LAYER}.mlp.dense_h_to_4h",
    megatron.FC2: f"{_LAYER}.mlp.dense_4h_to_h",
}


def _norms(config: LanguageConfig) -> dict[tuple[str, ...], str]:
    if config.mcore_customization_config.new_decoder_architecture:
        norms = {megatron.INPUT_NORM: f"{_LAYER}.ln_attn", megatron.MLP_NORM: f"{_LAYER}.ln_mlp"}
    else:
        norms = {megatron.INPUT_NORM: f"{_LAYER}.input_layernorm"}
    return norms | {megatron.FINAL_NORM: "transformer.ln_f"}


def _rules(config: LanguageConfig) -> tuple[Rule, ...]:
    norms = _norms(config)
    return (
        Rename(megatron.EMBEDDING, "transformer.word_embeddings.weight"),
        *(rule for source, target in _LINEARS.items() for rule in megatron.linear(source, target)),
        *(rule for source, target in norms.items() for rule in megatron.norm(config, source, target, centered=False)),
        Rename(megatron.HEAD, "lm_head.weight"),
        *megatron.IGNORED,
    )


def _describe(config: LanguageConfig) -> JsonObject:
    return {
        "model_type": "falcon",
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_kv_heads": config.groups,
        "new_decoder_architecture": config.mcore_customization_config.new_decoder_architecture,
        "multi_query": config.groups == 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": config.bias,
        "activation": decoder.activation(config),
        "layer_norm_epsilon": config.layernorm_epsilon,
        **decoder.rope(config),
    }


FALCON: Final = Architecture(
    name="FalconForCausalLM",
    requirements=(
        need.ROPE,
        need.DENSE,
        need.LAYERNORM,
        need.UNGATED,
        need.WHOLE_HEADS,
        need.USUAL_HEADS,
        need.EVERYTHING,
        need.UNSCALED,
        need.one_of("mcore_customization_config.parallel_attention", (True,)),
        need.Requirement(
            "num_query_groups",
            lambda c: c.mcore_customization_config.new_decoder_architecture or c.groups in {1, c.num_attention_heads},
            "1, num_attention_heads or null, as mcore_customization_config.new_decoder_architecture is false",
        ),
    ),
    rules=_rules,
    describe=_describe,
)
