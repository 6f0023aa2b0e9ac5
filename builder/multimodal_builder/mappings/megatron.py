"""Megatron-core's GPT: the names of its tensors, their shapes, and the rules that every target shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings.base import Ignore, Rename, Rule, Shape, SplitGated, SplitQkv, per_layer

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import LanguageConfig

LAYER: Final = "model.decoder.layers.{n}"
EMBEDDING: Final = "model.embedding.word_embeddings.weight"
HEAD: Final = "model.output_layer.weight"
FINAL_NORM: Final = "model.decoder.final_layernorm"
QKV: Final = f"{LAYER}.self_attention.linear_qkv"
PROJECTION: Final = f"{LAYER}.self_attention.linear_proj"
FC1: Final = f"{LAYER}.mlp.linear_fc1"
FC2: Final = f"{LAYER}.mlp.linear_fc2"

# Transformer Engine fuses a norm into the layer behind it; the local spec leaves it apart.
INPUT_NORM: Final = (f"{QKV}.layer_norm_", f"{LAYER}.input_layernorm.")
MLP_NORM: Final = (f"{FC1}.layer_norm_", f"{LAYER}.pre_mlp_layernorm.")
_KINDS: Final = ("weight", "bias")

IGNORED: Final = (
    Ignore("model.*._extra_state*", why="scales of Transformer Engine's 8-bit arithmetic, empty without it"),
    Ignore("model.rotary_pos_emb.inv_freq", why="computed from the configuration"),
)


def linear(source: str, target: str) -> tuple[Rule, ...]:
    """Rename a layer's weight and its bias, where there is one."""
    return tuple(Rename(f"{source}.{kind}", f"{target}.{kind}") for kind in _KINDS)


def norm(spellings: tuple[str, ...], target: str) -> tuple[Rule, ...]:
    """Rename a norm, however it is spelled."""
    return tuple(Rename(f"{spelled}{kind}", f"{target}.{kind}") for spelled in spellings for kind in _KINDS)


def split_qkv(config: LanguageConfig, target: str) -> tuple[Rule, ...]:
    """Take the fused attention input apart; `{part}` in the target becomes q, k and v."""
    query, key, value = (target.format(part=part, n="{n}") for part in "qkv")
    return tuple(
        SplitQkv(
            f"{QKV}.{kind}",
            query=f"{query}.{kind}",
            key=f"{key}.{kind}",
            value=f"{value}.{kind}",
            heads=config.num_attention_heads,
            groups=config.groups,
        )
        for kind in _KINDS
    )


def split_gated(gate: str, up: str) -> tuple[Rule, ...]:
    """Take the fused first layer apart."""
    return tuple(SplitGated(f"{FC1}.{kind}", gate=f"{gate}.{kind}", up=f"{up}.{kind}") for kind in _KINDS)


def tensors(config: LanguageConfig, *, rows: int) -> dict[str, Shape]:
    """Names and shapes of a whole model, norms in Transformer Engine's spelling.

    Args:
        config: NeMo's.
        rows: Of the embedding, padding included.
    """
    hidden, ffn, heads = config.hidden_size, config.ffn_hidden_size, config.num_attention_heads
    layers: dict[str, Shape] = {
        QKV: ((heads + 2 * config.groups) * config.head_size, hidden),
        PROJECTION: (hidden, heads * config.head_size),
        FC1: (2 * ffn if config.gated else ffn, hidden),
        FC2: (hidden, ffn),
    }
    named: dict[str, Shape] = {EMBEDDING: (rows, hidden)}
    named |= {f"{name}.weight": shape for name, shape in layers.items()}
    if config.bias:
        named |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    kinds = _KINDS[:1] if config.normalization == "rmsnorm" else _KINDS
    for spelled in (INPUT_NORM[0], MLP_NORM[0], f"{FINAL_NORM}."):
        named |= {f"{spelled}{kind}": (hidden,) for kind in kinds}
    if not config.share_embeddings_and_output_weights:
        named[HEAD] = (rows, hidden)
    return dict(per_layer(named, config.num_layers))
