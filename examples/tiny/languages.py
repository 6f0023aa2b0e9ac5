"""The tiny language models of transformers, with fresh weights, and the adapters of SALM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tiny.nemo_writer import LlamaShape
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, NemotronConfig, NemotronForCausalLM, PreTrainedModel

INIT: Final = 0.05  # spread of fresh weights; at these widths the usual 0.02 learns much slower
EPSILON: Final = 1e-5
UNIT: Final = 128  # NeMo's make_vocab_size_divisible_by


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of one language model; `vocab` is the tokenizer's size."""

    vocab: int
    layers: int = 2
    hidden: int = 96
    ffn: int = 256
    heads: int = 4
    groups: int = 4
    rotary_base: float = 10_000.0
    positions: int = 4096
    ranks: int = 1
    """Tensor-parallel ranks of the training."""

    @property
    def padded_vocab(self) -> int:
        """NeMo's rows."""
        unit = UNIT * self.ranks
        return -(-self.vocab // unit) * unit

    @property
    def shape(self) -> LlamaShape:
        """The numbers that the writer needs."""
        return LlamaShape(self.layers, self.heads, self.groups, self.padded_vocab)


def make_llama(sizes: Sizes, eos: int) -> LlamaForCausalLM:
    """A Llama with an untied head, float32."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.vocab,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.ffn,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.groups,
            max_position_embeddings=sizes.positions,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rotary_base},
            rms_norm_eps=EPSILON,
            initializer_range=INIT,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def make_nemotron(sizes: Sizes, eos: int) -> NemotronForCausalLM:
    """A Nemotron, float32: squared ReLU, layernorm1p with biases, half of each head rotated, an untied head."""
    return NemotronForCausalLM(
        NemotronConfig(
            vocab_size=sizes.vocab,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.ffn,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.groups,
            max_position_embeddings=sizes.positions,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": sizes.rotary_base,
                "partial_rotary_factor": 0.5,
            },
            norm_eps=EPSILON,
            initializer_range=INIT,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it: base(x) + scale * outward(inward(x))."""

    def __init__(self, base: nn.Linear, inward: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base = base
        self.inward = inward
        self.outward = nn.Linear(inward.out_features, base.out_features, bias=False)
        nn.init.zeros_(self.outward.weight)
        self.scale = scale

    def forward(self, states: Tensor) -> Tensor:
        """Apply both."""
        added: Tensor = self.base(states) + self.scale * self.outward(self.inward(states))
        return added


ADAPTED: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "qkv": ("self_attn", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
    "dense": ("self_attn", {"dense": "o_proj"}),
    "fc1": ("mlp", {"gate": "gate_proj", "up": "up_proj"}),
    "fc2": ("mlp", {"fc2": "down_proj"}),
}
"""NeMo's adapters, whose inward half serves a fused layer: where they lie in a layer of transformers' Llama."""


def adapt(llm: LlamaForCausalLM, rank: int, alpha: float) -> None:
    """Put a canonical LoRA beside all linear layers of the decoder."""
    for layer in llm.model.layers:
        for module, places in ADAPTED.values():
            parent = layer.get_submodule(module)
            bases = {name: parent.get_submodule(name) for name in places.values()}
            width = next(iter(bases.values())).in_features
            inward = nn.Linear(int(width), rank, bias=False)
            for name, base in bases.items():
                if isinstance(base, nn.Linear):
                    setattr(parent, name, Adapted(base, inward, alpha / rank))


def adapter_weights(llm: LlamaForCausalLM) -> dict[str, Tensor]:
    """The adapters' halves, as `states.lora_state` takes them."""
    weights: dict[str, Tensor] = {}
    for number, layer in enumerate(llm.model.layers):
        for adapter, (module, places) in ADAPTED.items():
            for short, name in places.items():
                adapted = layer.get_submodule(f"{module}.{name}")
                if isinstance(adapted, Adapted):
                    weights[f"{number}.{adapter}.in"] = adapted.inward.weight
                    weights[f"{number}.{short}.out"] = adapted.outward.weight
    return weights


def base_state(llm: PreTrainedModel, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """A language model's own tensors, without adapters, as they are stored."""
    return {
        name.replace(".base.", "."): value.to("cpu", dtype)
        for name, value in llm.state_dict().items()
        if ".inward." not in name and ".outward." not in name
    }


def stored(state: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Weights as they are stored; buffers of whole numbers stay."""
    return {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
        for name, value in state.items()
    }


def trainable(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """All parameters that learn, each once."""
    found: dict[int, nn.Parameter] = {}
    for module in modules:
        found |= {id(parameter): parameter for parameter in module.parameters() if parameter.requires_grad}
    return list(found.values())
