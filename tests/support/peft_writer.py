"""Adapters as Hugging Face's peft saves them, and the sum that its forward computes, written into the weights."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG = "adapter_config.json"


def no_scale(_layer: str) -> float:
    return 1.0


@dataclass(frozen=True)
class PeftAdapter:
    """Random matrices of LoRA for some layers of a model."""

    matrices: dict[str, tuple[Tensor, Tensor]]
    """A of [rank, inputs] and B of [outputs, rank], by the layer's name in the model."""
    settings: dict[str, Any] = field(default_factory=dict)
    """`adapter_config.json`."""
    scale: Callable[[str], float] = no_scale
    """What training multiplied a layer's product with."""
    transposed: bool = False
    """Whether the layers' weights are [inputs, outputs]."""

    @classmethod
    def random(
        cls, model: Any, layers: str, rank: Callable[[str], int], *, transposed: bool = False, **settings: Any
    ) -> PeftAdapter:
        """Make matrices for all layers whose names a pattern is found in."""
        chance = torch.Generator().manual_seed(17)
        matrices = {}
        for name, module in model.named_modules():
            if re.search(layers, name) and getattr(module, "weight", None) is not None and module.weight.dim() == 2:
                outputs, inputs = module.weight.shape[::-1] if transposed else module.weight.shape
                matrices[name] = (
                    torch.randn(rank(name), inputs, generator=chance) * 0.2,
                    torch.randn(outputs, rank(name), generator=chance) * 0.2,
                )
        assert matrices
        basic = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": transposed, "inference_mode": True}
        return cls(matrices, basic | settings, transposed=transposed)

    def scaled(self, scale: Callable[[str], float]) -> PeftAdapter:
        return replace(self, scale=scale)

    def state(self) -> dict[str, Tensor]:
        """Under the names that peft saves."""
        return {
            f"base_model.model.{layer}.lora_{side}.weight": matrix.clone()
            for layer, pair in self.matrices.items()
            for side, matrix in zip("AB", pair, strict=True)
        }

    def write(self, folder: Path, *, pickled: bool = False) -> Path:
        folder.mkdir()
        (folder / CONFIG).write_text(json.dumps(self.settings))
        if pickled:
            torch.save(self.state(), folder / "adapter_model.bin")
        else:
            save_file(self.state(), folder / "adapter_model.safetensors")
        return folder

    def merged(self, model: Any) -> Any:
        """Give a copy of the model with the sums in its weights."""
        tuned = copy.deepcopy(model)
        with torch.no_grad():
            for layer, (first, second) in self.matrices.items():
                change = self.scale(layer) * (second @ first)
                tuned.get_submodule(layer).weight += change.T if self.transposed else change
        return tuned
