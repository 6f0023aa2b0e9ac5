"""LoRA adapters of tiny models: as NeMo stores them, and as the sum that a training forward computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from tiny.nemo_writer import LAYERS, State, fuse_qkv
from torch import Tensor

LEGACY_LAYERS: Final = "model.language_model.encoder.layers."

Scheme = Mapping[str, tuple[str, ...]]

QUERY, KEY, VALUE = QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT, GATE, UP, DOWN = "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
_KQV: Final = "self_attention.adapter_layer.lora_unfused_kqv_adapter"
_FC1: Final = "mlp.adapter_layer.lora_unfused_hto4h_adapter"
_SECOND: Final = "self_attention.linear_qkv.adapter", "mlp.linear_fc1.adapter"
_DENSE: Final = {"self_attention.linear_proj.adapter": (OUT,), "mlp.linear_fc2.adapter": (DOWN,)}

# NeMo's name of each adapter, and the Hugging Face layers whose outputs it changes. The layers of one adapter share A.
FUSED: Final[Scheme] = {
    "self_attention.adapter_layer.lora_kqv_adapter": QKV,
    "self_attention.adapter_layer.lora_dense_attention_adapter": (OUT,),
    "mlp.adapter_layer.lora_hto4h_adapter": (GATE, UP),
    "mlp.adapter_layer.lora_4htoh_adapter": (DOWN,),
}
UNFUSED: Final[Scheme] = {
    **{f"{_KQV}.{part}_adapter": (module,) for part, module in zip("qkv", QKV, strict=True)},
    "self_attention.adapter_layer.lora_dense_attention_adapter": (OUT,),
    f"{_FC1}.gate_adapter": (GATE,),
    f"{_FC1}.up_adapter": (UP,),
    "mlp.adapter_layer.lora_4htoh_adapter": (DOWN,),
}
SECOND: Final[Scheme] = {_SECOND[0]: QKV, _SECOND[1]: (GATE, UP), **_DENSE}
"""NeMo 2's."""
CANONICAL: Final[Scheme] = {
    **{f"{_SECOND[0]}.adapter_{part}": (module,) for part, module in zip("qkv", QKV, strict=True)},
    f"{_SECOND[1]}.adapter_gate": (GATE,),
    f"{_SECOND[1]}.adapter_up": (UP,),
    **_DENSE,
}
"""NeMo 2's canonical LoRA. Its three outputs of attention are added one behind the other to rows that are per group."""


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
    scheme: Scheme

    @classmethod
    def random(cls, llama: Any, *, rank: int, alpha: float, seed: int = 11, scheme: Scheme = FUSED) -> Lora:
        chance = torch.Generator().manual_seed(seed)
        inward, outward = {}, {}
        for number, layer in enumerate(llama.model.layers):
            for adapter, modules in scheme.items():
                inputs = layer.get_submodule(modules[0]).in_features
                inward[f"{number}.{adapter}"] = torch.randn(rank, inputs, generator=chance) * 0.2
                for module in modules:
                    outputs = layer.get_submodule(module).out_features
                    outward[f"{number}.{module}"] = torch.randn(outputs, rank, generator=chance) * 0.2
        return cls(rank, alpha, llama.config.num_key_value_heads, inward, outward, scheme)

    def state(self, layers: str = LAYERS) -> State:
        """The tensors under NeMo's names: rows of B stand as in the fused weight."""
        state = {}
        for name, tensor in self.inward.items():
            number, _, adapter = name.partition(".")
            parts = [self.outward[f"{number}.{module}"] for module in self.scheme[adapter]]
            fused = fuse_qkv(*parts, groups=self.groups) if self.scheme[adapter] == QKV else torch.cat(parts)
            state[f"{layers}{name}.linear_in.weight"] = tensor
            state[f"{layers}{name}.linear_out.weight"] = fused
        return state

    def config(self) -> dict[str, Any]:
        """NeMo's `peft` section."""
        return {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": self.rank, "alpha": self.alpha}}

    def transform(self) -> dict[str, Any]:
        """NeMo 2's `model_transform`."""
        kind = "canonical_lora.CanonicalLoRA" if self.scheme is CANONICAL else "lora.LoRA"
        return {"_target_": f"nemo.collections.llm.peft.{kind}", "dim": self.rank, "alpha": self.alpha}

    def changes(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of each of Hugging Face's layers, by `<layer>.<module>`."""
        found = {}
        for name, first in self.inward.items():
            number, _, adapter = name.partition(".")
            found |= {
                f"{number}.{module}": (first, self.outward[f"{number}.{module}"]) for module in self.scheme[adapter]
            }
        if self.scheme is CANONICAL:
            for number in {name.partition(".")[0] for name in self.inward}:
                found |= self._as_added({module: found[f"{number}.{module}"] for module in QKV}, number)
        return found

    def _as_added(self, parts: dict[str, tuple[Tensor, Tensor]], number: str) -> dict[str, tuple[Tensor, Tensor]]:
        """What comes out of adding queries, keys and values, one behind the other, to per group rows."""
        first = torch.cat([inward for inward, _ in parts.values()])
        second = torch.block_diag(*(outward for _, outward in parts.values()))
        size = len(parts[KEY][1]) // self.groups
        grouped = second.reshape(self.groups, -1, size, second.shape[1])
        rows = {QUERY: grouped[:, :-2], KEY: grouped[:, -2], VALUE: grouped[:, -1]}
        return {f"{number}.{module}": (first, some.reshape(-1, second.shape[1])) for module, some in rows.items()}

    def attach(self, llama: Any) -> None:
        """Add (alpha / rank) · B(A(x)) to the output of every layer of a `LlamaForCausalLM`."""
        for name, (first, second) in self.changes().items():
            number, _, module = name.partition(".")
            layer = llama.model.layers[int(number)].get_submodule(module)
            layer.register_forward_hook(self._addition(first, second))

    def _addition(self, first: Tensor, second: Tensor) -> Any:
        def hook(_layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            return output + (inputs[0] @ first.T) @ second.T * (self.alpha / self.rank)

        return hook
