"""Megatron-core's GPT: the names of its tensors, their shapes, and the rules that every target shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings.base import Ignore, Offset, Rename, Rule, Shape, SplitGated, SplitQkv, per_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_builder.checkpoints.config import LanguageConfig

LAYER: Final = "model.decoder.layers.{n}"
EMBEDDING: Final = "model.embedding.word_embeddings.weight"
POSITIONS: Final = "model.embedding.position_embeddings.weight"
HEAD: Final = "model.output_layer.weight"
QKV: Final = f"{LAYER}.self_attention.linear_qkv"
PROJECTION: Final = f"{LAYER}.self_attention.linear_proj"
FC1: Final = f"{LAYER}.mlp.linear_fc1"
FC2: Final = f"{LAYER}.mlp.linear_fc2"
ROUTER: Final = f"{LAYER}.mlp.router"
EXPERT: Final = f"{LAYER}.mlp.experts.local_experts.{{e}}"

# Transformer Engine fuses a norm into the layer behind it; the local spec leaves it apart.
INPUT_NORM: Final = (f"{QKV}.layer_norm_", f"{LAYER}.input_layernorm.")
MLP_NORM: Final = (f"{FC1}.layer_norm_", f"{LAYER}.pre_mlp_layernorm.")
FINAL_NORM: Final = ("model.decoder.final_layernorm.",)
_KINDS: Final = ("weight", "bias")

IGNORED: Final = (
    Ignore("model.*._extra_state*", why="scales of Transformer Engine's 8-bit arithmetic, empty without it"),
    Ignore("model.rotary_pos_emb.inv_freq", why="computed from the configuration"),
)


def linear(source: str, target: str) -> tuple[Rule, ...]:
    """Rename a layer's weight and its bias, where there is one."""
    return tuple(Rename(f"{source}.{kind}", f"{target}.{kind}") for kind in _KINDS)


def norm(config: LanguageConfig, spellings: tuple[str, ...], target: str, *, centered: bool) -> Iterator[Rule]:
    """Rename a norm, however it is spelled.

    Args:
        config: Says whether NeMo stores the weights less one.
        spellings: NeMo's.
        target: transformers' name.
        centered: Whether transformers' class takes the weights less one.
    """
    offset = float(config.zero_centered) - float(centered)
    for spelled in spellings:
        weight = f"{spelled}weight", f"{target}.weight"
        yield Offset(*weight, by=offset) if offset else Rename(*weight)
        yield Rename(f"{spelled}bias", f"{target}.bias")


def split_qkv(config: LanguageConfig, attention: str) -> tuple[Rule, ...]:
    """Take the fused attention input apart."""
    return tuple(
        SplitQkv(
            f"{QKV}.{kind}",
            query=f"{attention}.q_proj.{kind}",
            key=f"{attention}.k_proj.{kind}",
            value=f"{attention}.v_proj.{kind}",
            heads=config.num_attention_heads,
            groups=config.groups,
        )
        for kind in _KINDS
    )


def split_gated(source: str, gate: str, up: str) -> tuple[Rule, ...]:
    """Take a fused first layer apart: the rows that go through the activation come first."""
    return tuple(SplitGated(f"{source}.{kind}", gate=f"{gate}.{kind}", up=f"{up}.{kind}") for kind in _KINDS)


def tensors(config: LanguageConfig, *, rows: int, positions: int) -> dict[str, Shape]:
    """Names and shapes of a whole model, norms in Transformer Engine's spelling.

    Args:
        config: NeMo's.
        rows: Of the embedding, padding included.
        positions: Rows of the table of positions, where there is one.
    """
    hidden = config.hidden_size
    named: dict[str, Shape] = {EMBEDDING: (rows, hidden)}
    if config.position_embedding_type == "learned_absolute":
        named[POSITIONS] = (positions, hidden)
    for name, shape in _linears(config).items():
        named[f"{name}.weight"] = shape
        if config.bias:
            named[f"{name}.bias"] = shape[:1]
    if config.num_moe_experts:
        named[f"{ROUTER}.weight"] = (config.num_moe_experts, hidden)
    kinds = _KINDS[:1] if config.normalization == "rmsnorm" else _KINDS
    for spelled, *_ in _norms(config):
        named |= {f"{spelled}{kind}": (hidden,) for kind in kinds}
    if not config.share_embeddings_and_output_weights:
        named[HEAD] = (rows, hidden)
    return dict(per_layer(named, config.num_layers))


def _norms(config: LanguageConfig) -> tuple[tuple[str, ...], ...]:
    falcon = config.mcore_customization_config
    shared = falcon.parallel_attention and not falcon.new_decoder_architecture
    return (INPUT_NORM, FINAL_NORM) if shared else (INPUT_NORM, MLP_NORM, FINAL_NORM)


def _linears(config: LanguageConfig) -> dict[str, Shape]:
    hidden, ffn, heads = config.hidden_size, config.ffn_hidden_size, config.num_attention_heads
    first, second = (2 * ffn if config.gated else ffn, hidden), (hidden, ffn)
    attention: dict[str, Shape] = {
        QKV: ((heads + 2 * config.groups) * config.head_size, hidden),
        PROJECTION: (hidden, heads * config.head_size),
    }
    if not config.num_moe_experts:
        return attention | {FC1: first, FC2: second}
    for expert in map(str, range(config.num_moe_experts)):
        name = EXPERT.replace("{e}", expert)
        attention |= {f"{name}.linear_fc1": first, f"{name}.linear_fc2": second}
    return attention
