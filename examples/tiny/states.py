"""Tensors of whole models under NeMo's names: decoders of both kinds, ranks, adapters, and SALM's perception.

Shares nothing with the product's reader, as `nemo_writer.py`, whose archives these states fill.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from tiny import nemo_writer
from tiny.nemo_writer import LAYERS, PROJECTOR, TOWER, LlamaShape, State
from torch import Tensor

ADAPTER: Final = "adapter_layer.lora_{}_adapter.linear_{}.weight"

PERCEPTION: Final = (
    (r"^subsampling\.layers\.", "pre_encode.conv."),
    (r"^subsampling\.linear\.", "pre_encode.out."),
    (r"self_attn\.relative_k_proj\.", "self_attn.linear_pos."),
    (r"self_attn\.o_proj\.", "self_attn.linear_out."),
    (r"self_attn\.([qkv])_proj\.", r"self_attn.linear_\1."),
    (r"self_attn\.bias_([uv])$", r"self_attn.pos_bias_\1"),
    (r"conv\.norm\.", "conv.batch_norm."),
)
"""transformers' names of a FastConformer, and NeMo's."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A language model of transformers, to be written."""

    llm: Mapping[str, Tensor]
    """Of a `LlamaForCausalLM` or `NemotronForCausalLM`."""
    shape: LlamaShape

    def layer(self, number: int) -> State:
        """One decoder layer under Megatron-core's names, without prefix."""
        if f"model.layers.{number}.mlp.gate_proj.weight" in self.llm:
            return nemo_writer.layer_state(self.llm, number, self.shape)

        def take(name: str) -> Tensor:
            return self.llm[f"model.layers.{number}.{name}"]

        # Both sides store the weights of layernorm1p minus one.
        query, key, value = (take(f"self_attn.{letter}_proj.weight") for letter in "qkv")
        return {
            "self_attention.linear_qkv.layer_norm_weight": take("input_layernorm.weight"),
            "self_attention.linear_qkv.layer_norm_bias": take("input_layernorm.bias"),
            "self_attention.linear_qkv.weight": nemo_writer.fuse_qkv(query, key, value, groups=self.shape.groups),
            "self_attention.linear_proj.weight": take("self_attn.o_proj.weight"),
            "mlp.linear_fc1.layer_norm_weight": take("post_attention_layernorm.weight"),
            "mlp.linear_fc1.layer_norm_bias": take("post_attention_layernorm.bias"),
            "mlp.linear_fc1.weight": take("mlp.up_proj.weight"),
            "mlp.linear_fc2.weight": take("mlp.down_proj.weight"),
        }

    def outer(self) -> State:
        """Embedding, head and final norm."""
        rows = self.shape.padded_vocab
        outer = {
            "model.embedding.word_embeddings.weight": nemo_writer.pad_rows(
                self.llm["model.embed_tokens.weight"], rows, seed=1
            ),
            "model.output_layer.weight": nemo_writer.pad_rows(self.llm["lm_head.weight"], rows, seed=2),
            "model.decoder.final_layernorm.weight": self.llm["model.norm.weight"],
        }
        if "model.norm.bias" in self.llm:
            outer["model.decoder.final_layernorm.bias"] = self.llm["model.norm.bias"]
        return outer

    def classic(self) -> State:
        """As in `model_weights.ckpt`: layers carry their number."""
        state = self.outer()
        for number in range(self.shape.layers):
            state |= {f"{LAYERS}{number}.{name}": tensor for name, tensor in self.layer(number).items()}
        return state

    def stacked(self) -> State:
        """As in `model_weights/`: layers are stacked under one name without a number."""
        layers = [self.layer(number) for number in range(self.shape.layers)]
        return self.outer() | {f"{LAYERS}{name}": torch.stack([layer[name] for layer in layers]) for name in layers[0]}


def projector_state(projector: Mapping[str, Tensor]) -> State:
    """A projector's tensors; the names inside are NeMo's already."""
    bare = PROJECTOR.removesuffix(".")
    return {f"{bare}.{name}": tensor for name, tensor in projector.items()}


def tower_state(tower: Mapping[str, Tensor]) -> State:
    """A trained tower's tensors, whose names start with `vision_model.`; NeMo holds it as bfloat16."""
    return {f"{TOWER}{name}": tensor.to(torch.bfloat16) for name, tensor in tower.items()}


def rank_state(state: State, rank: int, ranks: int) -> State:
    """What one of several tensor-parallel ranks stores of a classic state.

    Embedding, head, qkv and fc1 are cut by rows (whole groups in qkv; in a gated fc1 each half apart, so that a rank
    holds its gate rows and then its up rows), proj and fc2 by columns; norms and projector are in every rank.
    """

    def part(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(("word_embeddings.weight", "output_layer.weight", "linear_qkv.weight")):
            return tensor.chunk(ranks, dim=0)[rank].clone()
        if name.endswith("linear_fc1.weight"):
            return torch.cat([half.chunk(ranks, dim=0)[rank] for half in tensor.chunk(2, dim=0)])
        if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            return tensor.chunk(ranks, dim=1)[rank].clone()
        return tensor

    return {name: part(name, tensor) for name, tensor in state.items()}


def lora_state(adapters: Mapping[str, Tensor], shape: LlamaShape) -> State:
    """The adapters of all layers, apart from the weights they add to.

    Args:
        adapters: Per layer `{n}.{qkv,dense,fc1,fc2}.in`, and `{n}.{q,k,v,dense,gate,up,fc2}.out`.
        shape: The model's numbers.
    """
    state = {}
    for number in range(shape.layers):

        def take(name: str, number: int = number) -> Tensor:
            return adapters[f"{number}.{name}"]

        fused = nemo_writer.fuse_qkv(take("q.out"), take("k.out"), take("v.out"), groups=shape.groups)
        for place, name, inward, outward in (
            ("self_attention", "kqv", take("qkv.in"), fused),
            ("self_attention", "dense_attention", take("dense.in"), take("dense.out")),
            ("mlp", "hto4h", take("fc1.in"), torch.cat([take("gate.out"), take("up.out")])),
            ("mlp", "4htoh", take("fc2.in"), take("fc2.out")),
        ):
            prefix = f"{LAYERS}{number}.{place}."
            state[prefix + ADAPTER.format(name, "in")] = inward
            state[prefix + ADAPTER.format(name, "out")] = outward
    return state


def extra_states(shape: LlamaShape) -> dict[str, Any]:
    """What Transformer Engine adds to a SALM's `model_weights.ckpt` without FP8: empty buffers, and nothing at all."""
    return {
        f"{LAYERS}{number}.{name}._extra_state": io.BytesIO() if name != "self_attention.core_attention" else None
        for number in range(shape.layers)
        for name in (
            "self_attention.core_attention",
            "self_attention.linear_qkv",
            "self_attention.linear_proj",
            "mlp.linear_fc1",
            "mlp.linear_fc2",
        )
    }


def perception_state(
    encoder: Mapping[str, Tensor], adapter: Mapping[str, Tensor], projection: Mapping[str, Tensor], buffers: State
) -> State:
    """SALM's perception: FastConformer encoder, modality adapter of the same kind, projection, and the mel buffers.

    Args:
        encoder: A `ParakeetEncoder`'s tensors.
        adapter: Another's.
        projection: `weight` and `bias`.
        buffers: `window` and `fb`.
    """
    state = {f"perception.preprocessor.featurizer.{name}": tensor for name, tensor in buffers.items()}
    for part, tensors in (("encoder", encoder), ("modality_adapter", adapter)):
        for name, tensor in tensors.items():
            renamed = name
            for pattern, replacement in PERCEPTION:
                renamed = re.sub(pattern, replacement, renamed)
            state[f"perception.{part}.{renamed}"] = tensor
    return state | {f"perception.proj.{name}": tensor for name, tensor in projection.items()}
