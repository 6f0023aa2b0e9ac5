"""NeMo's `ConformerEncoder` in evaluation mode, for one sound, written from its description: plain, slow, no masks.

Works on a dictionary of tensors under NeMo's names, so that it is a second account of what they mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


class Conformer:
    """One encoder."""

    def __init__(self, state: State, *, heads: int, xscaling: bool = True) -> None:
        self.state = state
        self.heads = heads
        self.xscaling = xscaling
        self.layers = len({name.split(".")[1] for name in state if name.startswith("layers.")})

    def __call__(self, frames: Tensor) -> Tensor:
        """[frames, bands] → [rows, width]."""
        rows = self.subsample(frames)
        if self.xscaling:
            rows = rows * math.sqrt(rows.shape[1])
        for number in range(self.layers):
            rows = self.layer(rows, f"layers.{number}.")
        return rows

    def subsample(self, frames: Tensor) -> Tensor:
        """Halve three times with padded 3 by 3 kernels; the picture is [channels, time, bands]."""
        picture = functional.relu(self.conv(frames[None, None], "pre_encode.conv.0", stride=2, padding=1))
        for place in (2, 5):
            picture = self.conv(picture, f"pre_encode.conv.{place}", stride=2, padding=1, groups=picture.shape[1])
            picture = functional.relu(self.conv(picture, f"pre_encode.conv.{place + 1}"))
        flat = torch.cat(list(picture[0]), dim=1)  # channel after channel in each row
        return self.linear(flat, "pre_encode.out")

    def layer(self, rows: Tensor, at: str) -> Tensor:
        rows = rows + self.feed_forward(self.norm(rows, f"{at}norm_feed_forward1"), f"{at}feed_forward1") / 2
        rows = rows + self.attention(self.norm(rows, f"{at}norm_self_att"), f"{at}self_attn.")
        rows = rows + self.convolution(self.norm(rows, f"{at}norm_conv"), f"{at}conv.")
        rows = rows + self.feed_forward(self.norm(rows, f"{at}norm_feed_forward2"), f"{at}feed_forward2") / 2
        return self.norm(rows, f"{at}norm_out")

    def feed_forward(self, rows: Tensor, at: str) -> Tensor:
        return self.linear(functional.silu(self.linear(rows, f"{at}.linear1")), f"{at}.linear2")

    def attention(self, rows: Tensor, at: str) -> Tensor:
        """Transformer-XL's: content and distance, each with its own bias of the query."""
        count, width = rows.shape
        size = width // self.heads

        def split(name: str) -> Tensor:
            return self.linear(rows, f"{at}linear_{name}").reshape(count, self.heads, size)

        query, key, value = split("q"), split("k"), split("v")
        distances = torch.arange(count)[:, None] - torch.arange(count)
        places = self.linear(sinusoid(distances, width), f"{at}linear_pos").reshape(count, count, self.heads, size)
        content = torch.einsum("ihd,jhd->hij", query + self.state[f"{at}pos_bias_u"], key)
        distance = torch.einsum("ihd,ijhd->hij", query + self.state[f"{at}pos_bias_v"], places)
        weights = ((content + distance) / math.sqrt(size)).softmax(-1)
        return self.linear(torch.einsum("hij,jhd->ihd", weights, value).reshape(count, width), f"{at}linear_out")

    def convolution(self, rows: Tensor, at: str) -> Tensor:
        signal = self.conv(rows.T[None], f"{at}pointwise_conv1")
        signal, gate = signal.chunk(2, dim=1)
        signal = signal * gate.sigmoid()
        kernel = self.state[f"{at}depthwise_conv.weight"].shape[-1]
        signal = self.conv(signal, f"{at}depthwise_conv", padding=kernel // 2, groups=signal.shape[1])
        mean, variance = (self.state[f"{at}batch_norm.running_{name}"][:, None] for name in ("mean", "var"))
        signal = (signal - mean) / torch.sqrt(variance + 1e-5)
        signal = signal * self.state[f"{at}batch_norm.weight"][:, None] + self.state[f"{at}batch_norm.bias"][:, None]
        return self.conv(functional.silu(signal), f"{at}pointwise_conv2")[0].T

    def linear(self, rows: Tensor, at: str) -> Tensor:
        return functional.linear(rows, self.state[f"{at}.weight"], self.state.get(f"{at}.bias"))

    def norm(self, rows: Tensor, at: str) -> Tensor:
        return functional.layer_norm(rows, rows.shape[-1:], self.state[f"{at}.weight"], self.state[f"{at}.bias"])

    def conv(self, signal: Tensor, at: str, **how: int) -> Tensor:
        weight, bias = self.state[f"{at}.weight"], self.state.get(f"{at}.bias")
        convolve = functional.conv2d if weight.dim() == 4 else functional.conv1d
        return convolve(signal, weight, bias, **how)


def sinusoid(distances: Tensor, width: int) -> Tensor:
    """[…] → […, width]: sine and cosine take turns."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = distances[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def hear(state: State, frames: Tensor, *, heads: int = 4, xscaling: bool = True) -> Tensor:
    """The whole perception module of an archive: [frames, bands] → [rows, hidden]."""
    features = frames
    for part in ("encoder", "modality_adapter"):
        prefix = f"perception.{part}."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        features = Conformer(own, heads=heads, xscaling=xscaling)(features)
    return functional.linear(features, state["perception.proj.weight"], state["perception.proj.bias"])
