"""CLIP's vision tower as far as a language model needs it: up to the hidden layer that the projector takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from pydantic import BaseModel
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class ClipConfig(BaseModel):
    """`config.json` of a `CLIPVisionModel`; absent keys have transformers' defaults."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


def _quick_gelu(x: Tensor) -> Tensor:
    # The approximation OpenAI trained CLIP with; the factor is part of the model.
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {"quick_gelu": _quick_gelu, "gelu": functional.gelu}
"""`hidden_act` values of CLIP towers."""


class _Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        classes = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat([classes, patches], dim=1) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class _Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = _Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Encoder(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class _VisionModel(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        # CLIP's own spelling.
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = _Encoder(config)
        # Normalises the pooled class token, which no projector takes: here only so that every tensor has its place.
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class ClipTower(nn.Module):
    """The tower, with the parameter names of a `CLIPVisionModel` file."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.vision_model = _VisionModel(config)

    def forward(self, pixels: Tensor, select_layer: int) -> Tensor:
        """Give one hidden state; layers behind it do not run.

        Args:
            pixels: [items, channels, size, size], normalised.
            select_layer: Index into the hidden states, of which there is one more than layers; 0 is the embedding.

        Returns:
            [items, 1 + patches, width], the class token first.
        """
        model = self.vision_model
        layers = model.encoder.layers
        hidden: Tensor = model.pre_layrnorm(model.embeddings(pixels))
        for layer in layers[: range(len(layers) + 1)[select_layer]]:
            hidden = layer(hidden)
        return hidden
