"""NeMo's own CLIP towers → transformers' `CLIPVisionModel`.

Two of them exist: `VitBackbone` of NeMo 1's `MegatronCLIPModel` (`nemo/collections/vision/modules/vit/vit_backbone.py`,
and the converters `convert_external_clip_to_nemo.py`), and Megatron-core's `CLIPViTModel`
(`megatron/core/models/vision/clip_vit_model.py`, and `convert_clip_hf_to_nemo.py`), which NeMo 2 takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.tensors import row_reader
from multimodal_builder.mappings.base import Ignore, Rename, Rule, Shape, SplitQkv
from multimodal_builder.mappings.vit import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from multimodal_builder.checkpoints.tensors import Array, RowReader, TensorInfo, TensorSource
    from multimodal_builder.tower_config import ClipConfig

ARCHIVE_PREFIX: Final = "model.vision_encoder."
"""In front of the tower's names in the archive of a whole CLIP."""
BACKBONE: Final = "backbone."
"""What NeMo 1's names start with, behind the place of the tower."""
POSITIONS: Final = f"{BACKBONE}position_embeddings"
"""A parameter (`learned_parameters`); the weight of an embedding has `.weight` behind it."""
PATCH_BIAS: Final = f"{BACKBONE}linear_encoder.bias"

_LAYER: Final = PREFIX + "encoder.layers.{n}."
_EMBEDDINGS: Final = PREFIX + "embeddings."
_BLOCK: Final = BACKBONE + "transformer.layers.{n}."
_MEGATRON_BLOCK: Final = "decoder.layers.{n}."

_NEMO_1: Final = {
    f"{BACKBONE}preprocess_layernorm": f"{PREFIX}pre_layrnorm",
    f"{BACKBONE}transformer.final_layernorm": f"{PREFIX}post_layernorm",
    f"{_BLOCK}input_layernorm": f"{_LAYER}layer_norm1",
    f"{_BLOCK}self_attention.dense": f"{_LAYER}self_attn.out_proj",
    f"{_BLOCK}post_attention_layernorm": f"{_LAYER}layer_norm2",
    f"{_BLOCK}mlp.dense_h_to_4h": f"{_LAYER}mlp.fc1",
    f"{_BLOCK}mlp.dense_4h_to_h": f"{_LAYER}mlp.fc2",
}
"""Modules with weight and bias."""

_MEGATRON: Final = {
    f"{_MEGATRON_BLOCK}self_attention.linear_qkv.layer_norm_": f"{_LAYER}layer_norm1.",
    f"{_MEGATRON_BLOCK}self_attention.linear_proj.": f"{_LAYER}self_attn.out_proj.",
    f"{_MEGATRON_BLOCK}mlp.linear_fc1.layer_norm_": f"{_LAYER}layer_norm2.",
    f"{_MEGATRON_BLOCK}mlp.linear_fc1.": f"{_LAYER}mlp.fc1.",
    f"{_MEGATRON_BLOCK}mlp.linear_fc2.": f"{_LAYER}mlp.fc2.",
}
"""The same, up to `weight` and `bias`; Transformer Engine holds a norm with the layer behind it."""


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same values in another shape."""

    source: str
    target: str
    shape: Shape

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Give the shape."""
        if prod(info.shape) != prod(self.shape):
            raise ValueError(f"{list(info.shape)} values are not those of {list(self.shape)}")
        return ((self.target, self.shape),)

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Keep the values."""
        return (array.reshape(self.shape),)


@dataclass(frozen=True, slots=True)
class Twice:
    """The same values under two names."""

    source: str
    first: str
    second: str

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Keep the shape."""
        return ((self.first, info.shape), (self.second, info.shape))

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Keep the values."""
        return array, array


@dataclass(frozen=True, slots=True)
class PatchRows:
    """A linear layer on the pixels of a patch, in the order row, column, channel, as a convolution."""

    source: str
    target: str
    patch: int
    channels: int

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Take the pixels apart."""
        width, *pixels = info.shape
        if pixels != [self.patch**2 * self.channels]:
            raise ValueError(f"{pixels} values are not the pixels of a patch of {self.patch} by {self.patch}")
        return ((self.target, (width, self.channels, self.patch, self.patch)),)

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Put the channels in front."""
        return (array.reshape(-1, self.patch, self.patch, self.channels).transpose(0, 3, 1, 2),)


def nemo1_rules(config: ClipConfig, *, before: str, legacy: bool) -> tuple[Rule, ...]:
    """Map `VitBackbone`, its patches' bias being in the positions already (`FoldedSource`).

    Args:
        config: The sizes.
        before: What stands in front of `backbone.`.
        legacy: `megatron_legacy`: the fused attention input has all queries, then all keys, then all values.
    """
    heads = 1 if legacy else config.num_attention_heads
    return (
        Reshape(f"{before}{BACKBONE}cls_token", f"{_EMBEDDINGS}class_embedding", (config.hidden_size,)),
        PatchRows(
            f"{before}{BACKBONE}linear_encoder.weight",
            f"{_EMBEDDINGS}patch_embedding.weight",
            config.patch_size,
            config.num_channels,
        ),
        *(Rename(f"{before}{POSITIONS}{kind}", f"{_EMBEDDINGS}position_embedding.weight") for kind in ("", ".weight")),
        *_affine(_NEMO_1, before),
        *_attention(f"{before}{_BLOCK}self_attention.query_key_value", heads),
        Ignore(f"{before}head.weight", why="CLIP's projection, behind the layer that NeVA takes"),
        Ignore("model.text_encoder.*", why="the text half"),
        Ignore("model.logit_scale", why="of the contrastive training"),
    )


def megatron_rules(config: ClipConfig, names: Iterable[str], *, before: str) -> tuple[Rule, ...]:
    """Map `CLIPViTModel`.

    It ends with its last layer. transformers' class has a norm behind, which no layer that NeVA takes has passed: where
    the checkpoint has none, its values do not matter, and those of the norm in front are taken.

    Args:
        config: The sizes.
        names: The tensors there are.
        before: What stands in front of all names.
    """
    last = any(name.startswith(f"{before}decoder.final_layernorm.") for name in names)
    first_norm: list[Rule] = []
    for kind in ("weight", "bias"):
        front, back = f"{PREFIX}pre_layrnorm.{kind}", f"{PREFIX}post_layernorm.{kind}"
        first_norm += (
            [
                Rename(f"{before}ln_pre.{kind}", front),
                Rename(f"{before}decoder.final_layernorm.{kind}", back),
            ]
            if last
            else [Twice(f"{before}ln_pre.{kind}", front, back)]
        )
    return (
        Reshape(f"{before}class_token", f"{_EMBEDDINGS}class_embedding", (config.hidden_size,)),
        Rename(f"{before}conv1.weight", f"{_EMBEDDINGS}patch_embedding.weight"),
        Rename(f"{before}position_embeddings.weight", f"{_EMBEDDINGS}position_embedding.weight"),
        *first_norm,
        *(
            Rename(f"{before}{source}{kind}", f"{target}{kind}")
            for source, target in _MEGATRON.items()
            for kind in ("weight", "bias")
        ),
        *_attention(f"{before}{_MEGATRON_BLOCK}self_attention.linear_qkv", config.num_attention_heads),
        Ignore(f"{before}*._extra_state*", why="of Transformer Engine, empty without FP8"),
    )


def _affine(modules: Mapping[str, str], before: str) -> Iterator[Rule]:
    for source, target in modules.items():
        yield from (Rename(f"{before}{source}.{kind}", f"{target}.{kind}") for kind in ("weight", "bias"))


def _attention(source: str, heads: int) -> Iterator[Rule]:
    for kind in ("weight", "bias"):
        query, key, value = (f"{_LAYER}self_attn.{name}_proj.{kind}" for name in "qkv")
        yield SplitQkv(f"{source}.{kind}", query, key, value, heads=heads, groups=heads)


class FoldedSource:
    """A `VitBackbone` whose bias of patches is added to the positions of patches: transformers' CLIP has no such bias.

    Both are added to every patch, so that the sum is the same.
    """

    def __init__(self, base: TensorSource, infos: Mapping[str, TensorInfo], *, before: str, class_tokens: int) -> None:
        self._base = base
        self._infos = {name: info for name, info in infos.items() if name != before + PATCH_BIAS}
        self._bias = before + PATCH_BIAS if before + PATCH_BIAS in infos else None
        self._positions = {before + POSITIONS, f"{before}{POSITIONS}.weight"}
        self._class_tokens = class_tokens

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors but the bias."""
        return self._infos

    def read(self, name: str) -> Array:
        """Read one tensor; a sum is computed in float32, and rounded once."""
        array = self._base.read(name)
        if self._bias is None or name not in self._positions:
            return array
        dtype = self._infos[name].dtype
        bias = cast(self._base.read(self._bias), source=self._base.infos()[self._bias].dtype, target="F32")
        patches = cast(array[self._class_tokens :], source=dtype, target="F32") + bias
        return np.concatenate([array[: self._class_tokens], cast(patches, source="F32", target=dtype)])

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor that nothing is added to."""
        return None if name in self._positions else row_reader(self._base, name)
