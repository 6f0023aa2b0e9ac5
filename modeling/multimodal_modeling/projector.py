"""Projectors: from the tower's width to the language model's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_modeling.pretrained import corrupt
from multimodal_recipes.recipe import PROJECTOR_DIR, ProjectorConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_MLP: Final = re.compile(r"mlp([1-9][0-9]?)x_gelu")


class Projector(nn.Module):
    """One projector; its parameters are named `mm_projector.…` as in NeMo."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.mm_projector = make_projector(config)

    @classmethod
    def load(cls, model_dir: Path, *, dtype: torch.dtype, device: torch.device) -> Projector:
        """Read `projector/` of a canonical model.

        Raises:
            ProductError: a file is missing or broken, or weights and configuration disagree.
        """
        folder = model_dir / PROJECTOR_DIR
        try:
            config = ProjectorConfig.model_validate_json((folder / "config.json").read_bytes())
            state = load_file(folder / "model.safetensors")
            with torch.device("meta"):
                projector = cls(config)
            projector.load_state_dict(state, assign=True)
        except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
            raise corrupt(str(folder), str(error)) from error
        return projector.to(device=device, dtype=dtype).eval().requires_grad_(requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., input_size] to [..., hidden_size]."""
        projected: Tensor = self.mm_projector(features)
        return projected


def mlp_depth(kind: str) -> int | None:
    """Give N of `mlp<N>x_gelu`, or None when the kind is another one."""
    match = _MLP.fullmatch(kind)
    return int(match[1]) if match else None


def make_projector(config: ProjectorConfig) -> nn.Module:
    """Construct the layers that NeMo builds for a `mm_mlp_adapter_type`; every Linear has a bias, GELU is the erf form.

    Raises:
        ProductError: a kind that this version does not implement.
    """
    if config.kind == "linear":
        return nn.Linear(config.input_size, config.hidden_size)
    depth = mlp_depth(config.kind)
    if depth is None:
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at="mm_cfg.mm_mlp_adapter_type",
            problem=f"projector {config.kind!r} is not implemented",
            remedy="use a checkpoint whose projector is linear or mlp<N>x_gelu",
        )
    layers: list[nn.Module] = [nn.Linear(config.input_size, config.hidden_size)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
