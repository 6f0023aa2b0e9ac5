"""Writes the language model of a NeVA archive from transformers' own models, one function per class.

Shares nothing with the product's mappings: these lines go from transformers' names to Megatron-core's, the product's
tables go back. The layout of each tensor stands at the line that makes it.

What this writes for the models of `tests/support/language_cases.py` was loaded into `GPTModel` of Megatron-core
0.12.2 (local spec, float32, CPU): logits agree with transformers' to 2e-6 of the largest over 900 positions, with Llama
3.1's and interpolated positions over 9,000. Falcon's layers are NeMo's own, and were not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from tiny import nemo_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

State = dict[str, "Tensor"]

LAYERS: Final = "model.decoder.layers."
PADDED: Final = 512
"""Rows of the embedding, as NeMo pads them."""


def write_state(model: PreTrainedModel, *, local: bool, norms: float = 0.0) -> State:
    """Give a model's tensors under Megatron-core's names, layers and experts with their numbers.

    Args:
        model: A causal language model of transformers.
        local: Norms as the local spec names them, else as Transformer Engine does.
        norms: Is added to every weight of a norm.
    """
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    config = model.config
    outer, layer_of = WRITERS[config.model_type]
    layers = [layer_of(state, config, number) for number in range(config.num_hidden_layers)]
    written = outer(state)
    written["model.embedding.word_embeddings.weight"] = _pad(written["model.embedding.word_embeddings.weight"])
    if not config.tie_word_embeddings:
        written["model.output_layer.weight"] = _pad(state["lm_head.weight"])
    for layer in (written, *layers):
        for name in layer:
            if "norm" in name and name.endswith("weight"):
                layer[name] = layer[name] + norms
    if local:
        layers = [{_local(name): tensor for name, tensor in layer.items()} for layer in layers]
    return written | {f"{LAYERS}{n}.{name}": tensor for n, layer in enumerate(layers) for name, tensor in layer.items()}


def _pad(matrix: Tensor) -> Tensor:
    return nemo_writer.pad_rows(matrix, PADDED, seed=5)


def _local(name: str) -> str:
    return name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.").replace(
        "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."
    )


def _fuse(query: Tensor, key: Tensor, value: Tensor, groups: int) -> Tensor:
    """Per group: its queries, its key, its value; weights [rows, hidden] and biases [rows] alike."""
    if query.dim() == 1:
        return _fuse(query[:, None], key[:, None], value[:, None], groups)[:, 0]
    return nemo_writer.fuse_qkv(query, key, value, groups=groups)


def _both(state: Mapping[str, Tensor], source: str, target: str) -> State:
    """A layer's weight and bias; a norm in Transformer Engine's spelling has an underscore."""
    joint = "" if target.endswith("_") else "."
    return {
        f"{target}{joint}{kind}": state[f"{source}.{kind}"]
        for kind in ("weight", "bias")
        if f"{source}.{kind}" in state
    }


INPUT_NORM: Final = "self_attention.linear_qkv.layer_norm_"
MLP_NORM: Final = "mlp.linear_fc1.layer_norm_"


def _outer_llama(state: State) -> State:
    return {
        "model.embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        **_both(state, "model.norm", "model.decoder.final_layernorm"),
    }


def _attention(state: State, config: Any, number: int) -> State:
    """What the classes with Llama's names share."""
    at = f"model.layers.{number}"
    layer = {
        **_both(state, f"{at}.input_layernorm", INPUT_NORM),
        **_both(state, f"{at}.post_attention_layernorm", MLP_NORM),
        **_both(state, f"{at}.self_attn.o_proj", "self_attention.linear_proj"),
    }
    for kind in ("weight", "bias"):
        if f"{at}.self_attn.q_proj.{kind}" in state:
            query, key, value = (state[f"{at}.self_attn.{part}_proj.{kind}"] for part in "qkv")
            layer[f"self_attention.linear_qkv.{kind}"] = _fuse(query, key, value, config.num_key_value_heads)
    return layer


def _gated(state: State, config: Any, number: int) -> State:
    at = f"model.layers.{number}.mlp"
    layer = _attention(state, config, number) | _both(state, f"{at}.down_proj", "mlp.linear_fc2")
    for kind in ("weight", "bias"):
        if f"{at}.gate_proj.{kind}" in state:
            # The rows that go through the activation, then the others.
            halves = [state[f"{at}.gate_proj.{kind}"], state[f"{at}.up_proj.{kind}"]]
            layer[f"mlp.linear_fc1.{kind}"] = torch.cat(halves)
    return layer


def _mixtral(state: State, config: Any, number: int) -> State:
    layer = _attention(state, config, number)
    # A layer with experts has its norm apart in both specs.
    layer = {name.replace(MLP_NORM, "pre_mlp_layernorm."): tensor for name, tensor in layer.items()}
    at = f"model.layers.{number}.mlp"
    layer["mlp.router.weight"] = state[f"{at}.gate.weight"]
    for expert in range(config.num_local_experts):
        name = f"mlp.experts.local_experts.{expert}"
        # In memory: [experts, w1 and w3, hidden] and [experts, hidden, ffn].
        layer[f"{name}.linear_fc1.weight"] = state[f"{at}.experts.gate_up_proj"][expert]
        layer[f"{name}.linear_fc2.weight"] = state[f"{at}.experts.down_proj"][expert]
    return layer


def _plain(first: str, second: str) -> Callable[[State, Any, int], State]:
    """Llama's names with a feed-forward block of two layers."""

    def write(state: State, config: Any, number: int) -> State:
        at = f"model.layers.{number}.mlp"
        return {
            **_attention(state, config, number),
            **_both(state, f"{at}.{first}", "mlp.linear_fc1"),
            **_both(state, f"{at}.{second}", "mlp.linear_fc2"),
        }

    return write


def _outer_gpt2(state: State) -> State:
    return {
        "model.embedding.word_embeddings.weight": state["transformer.wte.weight"],
        "model.embedding.position_embeddings.weight": state["transformer.wpe.weight"],
        **_both(state, "transformer.ln_f", "model.decoder.final_layernorm"),
    }


def _bigcode(state: State, _config: Any, number: int) -> State:
    at = f"transformer.h.{number}"
    return {
        **_both(state, f"{at}.ln_1", INPUT_NORM),
        **_both(state, f"{at}.ln_2", MLP_NORM),
        **_both(state, f"{at}.attn.c_attn", "self_attention.linear_qkv"),  # one group: queries, key, value
        **_both(state, f"{at}.attn.c_proj", "self_attention.linear_proj"),
        **_both(state, f"{at}.mlp.c_fc", "mlp.linear_fc1"),
        **_both(state, f"{at}.mlp.c_proj", "mlp.linear_fc2"),
    }


def _gpt2(state: State, config: Any, number: int) -> State:
    layer = _bigcode(state, config, number)
    for name, tensor in layer.items():
        if tensor.dim() == 2:
            layer[name] = tensor.T.contiguous()  # GPT-2's layers are [in, out]
    for kind in ("weight", "bias"):
        name = f"self_attention.linear_qkv.{kind}"
        layer[name] = _fuse(*layer[name].chunk(3), config.num_attention_heads)
    return layer


def _outer_falcon(state: State) -> State:
    return {
        "model.embedding.word_embeddings.weight": state["transformer.word_embeddings.weight"],
        **_both(state, "transformer.ln_f", "model.decoder.final_layernorm"),
    }


def _falcon(state: State, config: Any, number: int) -> State:
    at = f"transformer.h.{number}"
    if config.new_decoder_architecture:
        norms = {"ln_attn": "input_layernorm", "ln_mlp": "pre_mlp_layernorm"}
    else:
        norms = {"input_layernorm": "input_layernorm"}
    layer = {
        **_both(state, f"{at}.self_attention.query_key_value", "self_attention.linear_qkv"),
        **_both(state, f"{at}.self_attention.dense", "self_attention.linear_proj"),
        **_both(state, f"{at}.mlp.dense_h_to_4h", "mlp.linear_fc1"),
        **_both(state, f"{at}.mlp.dense_4h_to_h", "mlp.linear_fc2"),
    }
    for theirs, name in norms.items():
        layer |= _both(state, f"{at}.{theirs}", name)
    return layer


WRITERS: Final[dict[str, tuple[Callable[[State], State], Callable[[State, Any, int], State]]]] = {
    "llama": (_outer_llama, _gated),
    "mistral": (_outer_llama, _gated),
    "gemma": (_outer_llama, _gated),
    "mixtral": (_outer_llama, _mixtral),
    "nemotron": (_outer_llama, _plain("up_proj", "down_proj")),
    "starcoder2": (_outer_llama, _plain("c_fc", "c_proj")),
    "gpt2": (_outer_gpt2, _gpt2),
    "gpt_bigcode": (_outer_gpt2, _bigcode),
    "falcon": (_outer_falcon, _falcon),
}
