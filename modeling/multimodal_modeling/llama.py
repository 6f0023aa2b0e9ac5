"""Llama decoders, fed with embeddings, with a key/value cache of a fixed capacity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


class RopeParameters(BaseModel):
    """`rope_parameters` of transformers 5."""

    rope_theta: float = 10_000.0


class LlamaConfig(BaseModel):
    """`config.json` of a `LlamaForCausalLM`."""

    vocab_size: int
    """Rows of the embedding, padding included."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_parameters: RopeParameters
    tie_word_embeddings: bool = Field(default=False)


class KvCache:
    """Keys and values of the sequences seen so far, for every layer."""

    def __init__(self, config: LlamaConfig, *, batch: int, capacity: int, like: Tensor) -> None:
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self._keys = like.new_empty(shape)
        self._values = like.new_empty(shape)
        self.length = 0
        """Positions held."""

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self._keys.shape[3]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions of one layer, and give all of that layer: [batch, kv_heads, length + new, head_dim]."""
        end = self.length + keys.shape[2]
        self._keys[layer, :, :, self.length : end] = keys
        self._values[layer, :, :, self.length : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]


class _RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Statistics in float32, as Llama was trained.
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        return self.weight * scaled.to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + half) of each head by its position's angle: the half-split form, which Megatron shares."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class _Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self._head_dim = config.head_dim
        query, shared = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: KvCache, layer: int) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, self._head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys, values = cache.extend(layer, _rotate(key, *rotation), value)
        mixed = functional.scaled_dot_product_attention(
            _rotate(query, *rotation), keys, values, attn_mask=_mask(x, cache), enable_gqa=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


def _mask(x: Tensor, cache: KvCache) -> Tensor | None:
    """Each new position sees the old ones and those before it; a single new one sees all, and needs no mask."""
    new = x.shape[1]
    if new == 1:
        return None
    return torch.ones(new, cache.length + new, dtype=torch.bool, device=x.device).tril(cache.length)


class _Mlp(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = _RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: KvCache, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, cache, layer)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Decoder(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _RmsNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A decoder with transformers' parameter names; with tied embeddings there is no `lm_head`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Decoder(config)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Look up token ids: [tokens] → [tokens, hidden]."""
        embedded: Tensor = self.model.embed_tokens(ids.to(self.model.embed_tokens.weight.device))
        return embedded

    def new_cache(self, capacity: int, *, batch: int = 1) -> KvCache:
        """Make an empty cache with room for `capacity` positions of `batch` sequences."""
        return KvCache(self.config, batch=batch, capacity=capacity, like=self.model.embed_tokens.weight)

    def forward(self, embeddings: Tensor, cache: KvCache) -> Tensor:
        """Take new positions into the cache.

        Args:
            embeddings: [batch, new, hidden], the positions behind those that the cache holds.
            cache: Extended in place.

        Returns:
            [batch, new, hidden]: the last layer's normalised states, the input of `logits`.
        """
        rotation = self._rotation(cache.length, embeddings)
        hidden = embeddings
        for index, layer in enumerate(self.model.layers):
            hidden = layer(hidden, rotation, cache, index)
        cache.length += embeddings.shape[1]
        normalised: Tensor = self.model.norm(hidden)
        return normalised

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary, padding rows included: [..., hidden] → [..., vocab]."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return functional.linear(hidden, head.weight)

    def _rotation(self, start: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each new position's angles, [new, head_dim], computed in float32."""
        size, base = self.config.head_dim, self.config.rope_parameters.rope_theta
        steps = torch.arange(0, size, 2, dtype=torch.float32, device=like.device) / size
        positions = torch.arange(start, start + like.shape[1], dtype=torch.float32, device=like.device)
        angles = torch.outer(positions, 1.0 / base**steps).repeat(1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)
