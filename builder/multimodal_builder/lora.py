"""LoRA adapters of NeMo's PEFT, merged into the weights that they change: W' = W + (alpha / rank) · B · A.

An adapter is a pair: `linear_in` A of [rank, inputs] and `linear_out` B of [outputs, rank]. The rows of B are those of
the weight (for the fused attention input: per group its queries, its key, its value), so that the sum comes before
any mapping takes the weight apart. NeMo's own script leaves the factor alpha / rank out; training does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.tensors import FLOATS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multimodal_builder.checkpoints.config import LoraSection
    from multimodal_builder.checkpoints.tensors import Array, TensorInfo, TensorSource

PLACES: Final = {
    "self_attention.adapter_layer.lora_kqv_adapter": "self_attention.linear_qkv.weight",
    "self_attention.adapter_layer.lora_dense_attention_adapter": "self_attention.linear_proj.weight",
    "mlp.adapter_layer.lora_hto4h_adapter": "mlp.linear_fc1.weight",
    "mlp.adapter_layer.lora_4htoh_adapter": "mlp.linear_fc2.weight",
}
"""NeMo's adapters, and the weights of Megatron-core's layers that they change."""

MARK: Final = ".adapter_layer.lora_"
"""In the name of every tensor of an adapter, also of kinds that are not known here."""

BLOCK: Final = 2048
"""Rows that are summed at a time, so that no weight lies in memory as float32 as a whole."""

_NAME: Final = re.compile(
    r"model\.(?:decoder|language_model\.encoder)\.layers\.(?P<layer>\d+)\."
    rf"(?P<place>{'|'.join(map(re.escape, PLACES))})\.linear_(?P<side>in|out)\.weight"
)
"""Layers are those of Megatron-core, or of NeMo's models before it."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """Where adapters come from."""

    at: str
    """What to call the checkpoint in an error."""
    tensors: TensorSource
    """May hold other tensors too."""
    config: LoraSection

    @property
    def names(self) -> list[str]:
        """Its adapters' tensors."""
        return [name for name in self.tensors.infos() if MARK in name]


@dataclass(frozen=True, slots=True)
class _Adapter:
    inward: str
    outward: str
    scale: float


class MergedSource:
    """The tensors of a language model with adapters merged; mappings need not know of them."""

    def __init__(self, base: TensorSource, source: TensorSource, adapters: Mapping[str, _Adapter]) -> None:
        self._base = base
        self._source = source
        self._adapters = adapters
        self._infos = {name: info for name, info in base.infos().items() if MARK not in name}

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors but the adapters', in the order and types of the language model."""
        return self._infos

    def read(self, name: str) -> Array:
        """Read one tensor; a sum is computed in float32, and rounded once to the type of the weight."""
        weight = self._base.read(name)
        adapter = self._adapters.get(name)
        if adapter is None:
            return weight
        dtype = self._infos[name].dtype
        inward = self._wide(adapter.inward)
        outward = self._wide(adapter.outward) * np.float32(adapter.scale)
        merged = np.empty_like(weight)
        for start in range(0, len(weight), BLOCK):
            rows = slice(start, start + BLOCK)
            total = cast(weight[rows], source=dtype, target="F32") + outward[rows] @ inward
            merged[rows] = cast(total, source="F32", target=dtype)
        return merged

    def _wide(self, name: str) -> Array:
        return cast(self._source.read(name), source=self._source.infos()[name].dtype, target="F32")


def merge_adapters(base: TensorSource, found: Sequence[Adapters]) -> TensorSource:
    """Put adapters into a language model's weights.

    Args:
        base: The language model.
        found: The checkpoints that may hold adapters; `base` may be of one of them.

    Returns:
        `base` itself where there are no adapters.

    Raises:
        ProductError: two checkpoints hold adapters; or one is of an unknown kind, incomplete, has no weight to change,
            or does not fit.
    """
    holding = [adapters for adapters in found if adapters.names]
    if not holding:
        return base
    first, *others = holding
    if others:
        raise _wrong(
            first.at,
            f"holds LoRA adapters, and so does {others[0].at}: both would be added to the same weights",
            "give either a LoRA checkpoint, or a checkpoint with its adapters in it",
        )
    return MergedSource(base, first.tensors, _pairs(base.infos(), first))


def _pairs(weights: Mapping[str, TensorInfo], adapters: Adapters) -> dict[str, _Adapter]:
    """Find the two halves of every adapter and the weight it changes."""
    infos = adapters.tensors.infos()
    halves: dict[str, dict[str, str]] = {}
    for name in adapters.names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise _wrong(
                f"{adapters.at}: {name}",
                "is no adapter that this version knows",
                f"use adapters of {', '.join(place.rpartition('.')[2] for place in PLACES)}, or merge them with NeMo",
            )
        weight = f"model.decoder.layers.{match['layer']}.{PLACES[match['place']]}"
        halves.setdefault(weight, {})[match["side"]] = name
    return {weight: _pair(weight, weights.get(weight), sides, infos, adapters) for weight, sides in halves.items()}


def _pair(
    name: str, weight: TensorInfo | None, sides: Mapping[str, str], infos: Mapping[str, TensorInfo], adapters: Adapters
) -> _Adapter:
    at = f"{adapters.at}: {next(iter(sides.values()))}"
    if len(sides) != len({"in", "out"}):
        raise _wrong(at, "its other half, linear_in or linear_out, is missing", "use a whole LoRA checkpoint")
    if weight is None:
        raise _wrong(at, f"changes {name}, which the language model does not have", "use the adapter of this model")
    inward, outward = infos[sides["in"]], infos[sides["out"]]
    rank = inward.shape[0] if inward.shape else 0
    if (outward.shape, inward.shape) != ((weight.shape[0], rank), (rank, *weight.shape[1:])):
        raise _wrong(
            at,
            f"{list(outward.shape)} times {list(inward.shape)} gives no change of {name}, {list(weight.shape)}",
            "use the adapter of this model",
        )
    if any(info.dtype not in FLOATS for info in (inward, outward, weight)):
        raise _wrong(at, f"types {inward.dtype}, {outward.dtype} and {weight.dtype} cannot be summed", "save as float")
    return _Adapter(sides["in"], sides["out"], _scale(adapters, rank))


def _scale(adapters: Adapters, rank: int) -> float:
    """Give alpha / rank; NeMo's alpha is the rank where the configuration has none."""
    config = adapters.config
    if config.adapter_dim not in {None, rank}:
        raise _wrong(
            f"{adapters.at}: peft.lora_tuning.adapter_dim",
            f"is {config.adapter_dim}, but the adapters have rank {rank}",
            "use the model_config.yaml that belongs to the adapters",
        )
    return (rank if config.alpha is None else config.alpha) / rank


def _wrong(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.CHECKPOINT_WEIGHTS, at=at, problem=problem, remedy=remedy)
