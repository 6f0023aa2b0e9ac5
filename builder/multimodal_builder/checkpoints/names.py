"""Names of tensors: NeMo's other spellings, renamed to those of NeMo 1 with Megatron-core."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.checkpoints.tensors import CARRIERS, TensorInfo, row_reader, shards_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.tensors import Array, RowReader, TensorSource

TOWER: Final = "model.embedding.word_embeddings.vision_encoder."
PROJECTOR: Final = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."

_LEGACY_LAYER: Final = r"(model\.language_model\.encoder\.layers\.\d+)\."
_KIND: Final = r"(weight|bias)"

RENAMES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"model\.module\.", "model."),  # mixed precision of NeMo 1 (`megatron_amp_O2`)
        # NeMo 2: `module.`, and for a model that sees three parts behind it. Megatron's own projector numbers nothing.
        (r"(?:module\.)+language_model\.", "model."),
        (r"(?:module\.)+vision_model\.", TOWER),
        (rf"(?:module\.)+vision_projection\.encoder\.linear_fc1\.{_KIND}", rf"{PROJECTOR}0.\1"),
        (rf"(?:module\.)+vision_projection\.encoder\.linear_fc2\.{_KIND}", rf"{PROJECTOR}2.\1"),
        (r"(?:module\.)+vision_projection\.", PROJECTOR),
        (r"(?:module\.)+", "model."),
        # NeMo's models before Megatron-core (`mcore_gpt: false`).
        (rf"{_LEGACY_LAYER}input_layernorm\.{_KIND}", r"\1.self_attention.linear_qkv.layer_norm_\2"),
        (rf"{_LEGACY_LAYER}post_attention_layernorm\.{_KIND}", r"\1.mlp.linear_fc1.layer_norm_\2"),
        (rf"{_LEGACY_LAYER}self_attention\.query_key_value\.{_KIND}", r"\1.self_attention.linear_qkv.\2"),
        (rf"{_LEGACY_LAYER}self_attention\.dense\.{_KIND}", r"\1.self_attention.linear_proj.\2"),
        # The linear half of a gated layer may lie apart: it goes behind the other.
        (rf"{_LEGACY_LAYER}mlp\.dense_h_to_4h(?:_2)?\.{_KIND}", r"\1.mlp.linear_fc1.\2"),
        (rf"{_LEGACY_LAYER}mlp\.dense_4h_to_h\.{_KIND}", r"\1.mlp.linear_fc2.\2"),
        (r"model\.language_model\.encoder\.", "model.decoder."),
        (r"model\.language_model\.", "model."),
        # The first projectors, of NeMo 1.22.
        (
            r"(model\.embedding\.word_embeddings\.adapter_layer)\.mm_linear_adapter\.linear\.",
            r"\1.mm_projector_adapter.mm_projector.",
        ),
    )
)
"""Patterns of beginnings of names, tried in order, each on what the ones before made."""

_TRAINING: Final = re.compile(r"(?:chained_\d+\.)?optimizer\.")
"""Begins what NeMo 2 saves beside the model, to go on training."""
_APART: Final = "dense_h_to_4h_2."


def canonical_name(name: str) -> str:
    """Give the name that a tensor has in NeMo 1 with Megatron-core."""
    for pattern, replacement in RENAMES:
        if (match := pattern.match(name)) is not None:
            name = match.expand(replacement) + name[match.end() :]
    return name


class NamedSource:
    """The tensors of another source under their canonical names; halves that lie apart are joined."""

    def __init__(self, source: TensorSource, at: str) -> None:
        """Rename.

        Raises:
            ProductError: two tensors get one name.
        """
        self._source = source
        self._at = at
        found = {name: info for name, info in source.infos().items() if _TRAINING.match(name) is None}
        self._stored: dict[str, tuple[str, ...]] = {}
        for name in found:
            canonical = canonical_name(name)
            self._stored[canonical] = tuple(sorted((*self._stored.get(canonical, ()), name)))
        self._infos = {
            name: self._joined(name, [found[part] for part in parts]) for name, parts in self._stored.items()
        }

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, in the order of the source."""
        return self._infos

    def read(self, name: str) -> Array:
        """Read one tensor."""
        first, *others = (self._source.read(part) for part in self._stored[name])
        if not others:
            return first
        info = self._infos[name]
        return np.concatenate([first, *others], out=empty(info.shape, CARRIERS[info.dtype]))

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor, unless its halves lie apart."""
        first, *others = self._stored[name]
        return None if others else row_reader(self._source, first)

    def shards(self, name: str, axis: int) -> int:
        """Count the parts that a tensor is stored in along an axis."""
        return shards_of(self._source, self._stored[name][0], axis)

    def _joined(self, name: str, infos: list[TensorInfo]) -> TensorInfo:
        first, *others = infos
        if not others:
            return first
        stored = self._stored[name]
        if len(infos) != len({"gate", "up"}) or _APART not in stored[1] or others != [first] or not first.shape:
            raise unreadable(f"{self._at}: {stored[0]}", f"and {stored[1]} are both {name}")
        return TensorInfo(first.dtype, (2 * first.shape[0], *first.shape[1:]))
