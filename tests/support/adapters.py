"""LoRA adapters of a tiny Llama: as NeMo stores them, and as the sum that a training forward computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from tiny.nemo_writer import LAYERS, State, fuse_qkv
from torch import Tensor

LEGACY_LAYERS: Final = "model.language_model.encoder.layers."

# NeMo's name of each adapter, and the Hugging Face layers whose outputs it changes. The layers of one adapter share A.
ADAPTERS: Final = {
    "self_attention.adapter_layer.lora_kqv_adapter": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.adapter_layer.lora_dense_attention_adapter": ("self_attn.o_proj",),
    "mlp.adapter_layer.lora_hto4h_adapter": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.adapter_layer.lora_4htoh_adapter": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class Lora:
    """Random adapters on every linear layer of a `LlamaForCausalLM`."""

    rank: int
    alpha: float
    groups: int
    inward: dict[str, Tensor]
    """A by `<layer>.<NeMo's adapter>`: [rank, inputs]."""
    outward: dict[str, Tensor]
    """B by `<layer>.<Hugging Face's module>`: [outputs, rank]."""

    @classmethod
    def random(cls, llama: Any, *, rank: int, alpha: float, seed: int = 11) -> Lora:
        chance = torch.Generator().manual_seed(seed)
        inward, outward = {}, {}
        for number, layer in enumerate(llama.model.layers):
            for adapter, modules in ADAPTERS.items():
                inputs = layer.get_submodule(modules[0]).in_features
                inward[f"{number}.{adapter}"] = torch.randn(rank, inputs, generator=chance) * 0.2
                for module in modules:
                    outputs = layer.get_submodule(module).out_features
                    outward[f"{number}.{module}"] = torch.randn(outputs, rank, generator=chance) * 0.2
        return cls(rank, alpha, llama.config.num_key_value_heads, inward, outward)

    def state(self, layers: str = LAYERS) -> State:
        """The tensors under NeMo's names: rows of B stand as in the fused weight."""
        state = {}
        for name, tensor in self.inward.items():
            number, _, adapter = name.partition(".")
            parts = [self.outward[f"{number}.{module}"] for module in ADAPTERS[adapter]]
            fused = fuse_qkv(*parts, groups=self.groups) if "kqv" in adapter else torch.cat(parts)
            state[f"{layers}{name}.linear_in.weight"] = tensor
            state[f"{layers}{name}.linear_out.weight"] = fused
        return state

    def config(self) -> dict[str, Any]:
        """NeMo's `peft` section."""
        return {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": self.rank, "alpha": self.alpha}}

    def attach(self, llama: Any) -> None:
        """Add (alpha / rank) · B(A(x)) to the output of every layer of a `LlamaForCausalLM`."""
        for name, first in self.inward.items():
            number, _, adapter = name.partition(".")
            for module in ADAPTERS[adapter]:
                second = self.outward[f"{number}.{module}"]
                layer = llama.model.layers[int(number)].get_submodule(module)
                layer.register_forward_hook(self._addition(first, second))

    def _addition(self, first: Tensor, second: Tensor) -> Any:
        def hook(_layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            return output + (inputs[0] @ first.T) @ second.T * (self.alpha / self.rank)

        return hook
