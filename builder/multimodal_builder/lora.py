"""LoRA adapters of NeMo's PEFT, merged into the weights that they change: W' = W + (alpha / rank) · B · A.

The sum comes before any mapping takes a weight apart, so an adapter of queries, of a gate or of an expert changes the
rows that are theirs (`multimodal_builder.mappings.adapters`). NeMo's own script of version 1 leaves the factor
alpha / rank out; training does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.tensors import FLOATS, row_reader, shards_of
from multimodal_builder.mappings.adapters import (
    IDLE,
    REFUSED,
    Layout,
    find_half,
    is_adapter,
    rows_of,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from multimodal_builder.checkpoints.config import LanguageConfig, LoraSection
    from multimodal_builder.checkpoints.tensors import Array, RowReader, TensorInfo, TensorSource
    from multimodal_builder.mappings.adapters import Half, Rows

BLOCK: Final = 2048
"""Rows that are summed at a time, so that no weight lies in memory as float32 as a whole."""

_REMEDY: Final = "merge it with NeMo beforehand, or use LoRA"


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
        return [name for name in self.tensors.infos() if is_adapter(name)]


@dataclass(frozen=True, slots=True)
class _Update:
    """What one adapter adds to a weight."""

    inward: str
    outward: str
    scale: float
    rows: Rows
    """Of the weight, in the order of B's."""


class MergedSource:
    """The tensors of a language model with adapters merged; mappings need not know of them."""

    def __init__(self, base: TensorSource, source: TensorSource, updates: Mapping[str, Sequence[_Update]]) -> None:
        self._base = base
        self._source = source
        self._updates = updates
        self._infos = {name: info for name, info in base.infos().items() if not is_adapter(name)}

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors but the adapters', in the order and types of the language model."""
        return self._infos

    def read(self, name: str) -> Array:
        """Read one tensor; a sum is computed in float32, and rounded once to the type of the weight."""
        weight = self._base.read(name)
        updates = self._updates.get(name, ())
        merged = weight.copy() if updates else weight
        dtype = self._infos[name].dtype
        for update in updates:
            inward = self._wide(update.inward)
            outward = self._wide(update.outward) * np.float32(update.scale)
            for start in range(0, len(outward), BLOCK):
                block = slice(start, start + BLOCK)
                rows = update.rows[block]
                total = cast(weight[rows], source=dtype, target="F32") + outward[block] @ inward
                merged[rows] = cast(total, source="F32", target=dtype)
        return merged

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor that no adapter changes."""
        return None if name in self._updates else row_reader(self._base, name)

    def _wide(self, name: str) -> Array:
        return cast(self._source.read(name), source=self._source.infos()[name].dtype, target="F32")


def merge_adapters(base: TensorSource, found: Sequence[Adapters], config: LanguageConfig) -> TensorSource:
    """Put adapters into a language model's weights.

    Args:
        base: The language model.
        found: The checkpoints that may hold adapters; `base` may be of one of them.
        config: Of the language model.

    Returns:
        `base` itself where there are no adapters.

    Raises:
        ProductError: two checkpoints hold adapters; or one is of a kind that is no sum of weights, incomplete, has no
            weight to change, or does not fit.
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
    return MergedSource(base, first.tensors, _updates(base.infos(), first, config))


def _updates(weights: Mapping[str, TensorInfo], adapters: Adapters, config: LanguageConfig) -> dict[str, list[_Update]]:
    """Find the two halves of every adapter, and the weights it changes."""
    pairs: dict[str, dict[str, tuple[str, Half]]] = {}
    for name in adapters.names:
        if IDLE.fullmatch(name) is None:
            half = _half(name, adapters)
            pairs.setdefault(half.adapter, {})[half.side] = name, half
    updates: dict[str, list[_Update]] = {}
    for sides in pairs.values():
        for weight, update in _pair(sides, weights, adapters, config):
            updates.setdefault(weight, []).append(update)
    for weight, several in updates.items():
        if len(np.unique(np.concatenate([update.rows for update in several]))) < sum(len(u.rows) for u in several):
            raise _wrong(f"{adapters.at}: {weight}", "two adapters change the same rows", "use a checkpoint of one run")
    return updates


def _half(name: str, adapters: Adapters) -> Half:
    half = find_half(name)
    if half is None:
        kind = next((kind for pattern, kind in REFUSED if pattern.search(name)), "no adapter that this version knows")
        raise _wrong(f"{adapters.at}: {name}", f"is {kind}, which is not merged", _REMEDY)
    return half


def _pair(
    sides: Mapping[str, tuple[str, Half]],
    weights: Mapping[str, TensorInfo],
    adapters: Adapters,
    config: LanguageConfig,
) -> Iterator[tuple[str, _Update]]:
    some, half = next(iter(sides.values()))
    at = f"{adapters.at}: {some}"
    if len(sides) != len({"in", "out"}):
        raise _wrong(at, "its other half, linear_in or linear_out, is missing", "use a whole LoRA checkpoint")
    inward, outward = sides["in"][0], sides["out"][0]
    for name in weights_of(half, weights):
        if name not in weights:
            raise _wrong(at, f"changes {name}, which the language model does not have", "use the adapter of this model")
        yield name, _update(inward, outward, half, weights[name], adapters, config)


def _update(
    inward: str, outward: str, half: Half, weight: TensorInfo, adapters: Adapters, config: LanguageConfig
) -> _Update:
    infos = adapters.tensors.infos()
    first, second = infos[inward], infos[outward]
    at = f"{adapters.at}: {inward}"
    if any(info.dtype not in FLOATS for info in (first, second, weight)):
        raise _wrong(at, f"types {first.dtype}, {second.dtype} and {weight.dtype} cannot be summed", "save as float")
    if not len(first.shape) == len(second.shape) == len(weight.shape) == len(("rows", "columns")):
        raise _wrong(at, f"shapes {first.shape} and {second.shape} are no matrices", "use a whole LoRA checkpoint")
    rank = first.shape[0]
    layout = Layout(
        heads=config.num_attention_heads,
        groups=config.groups,
        gated=config.gated,
        ranks=shards_of(adapters.tensors, inward, 0) if half.fans_out else 1,
        runs=shards_of(adapters.tensors, outward, 0),
    )
    try:
        rows = rows_of(half.kind, weight.shape[0], layout)
    except ValueError as error:
        raise _wrong(
            at, f"is no adapter of {half.weight}, {list(weight.shape)}: {error}", "use a whole model"
        ) from error
    if (second.shape, first.shape) != ((len(rows), rank), (rank, weight.shape[1])):
        raise _wrong(
            at,
            f"{list(second.shape)} times {list(first.shape)} gives no change of "
            f"{len(rows)} rows of {half.weight}, {list(weight.shape)}",
            "use the adapter of this model",
        )
    return _Update(inward, outward, _scale(adapters, rank, half), rows)


def _scale(adapters: Adapters, rank: int, half: Half) -> float:
    """Give alpha / rank; NeMo 1's alpha is the rank where the configuration has none."""
    config = adapters.config
    if config.adapter_dim not in {None, rank}:
        raise _wrong(
            f"{adapters.at}: peft.lora_tuning.adapter_dim",
            f"is {config.adapter_dim}, but the adapters have rank {rank}",
            "use the model_config.yaml that belongs to the adapters",
        )
    if config.alpha is None and half.kind.second:
        raise _wrong(
            f"{adapters.at}: context/model.yaml: model_transform",
            "is missing, so that nothing says how the adapters were scaled",
            "use the context that NeMo wrote beside the adapters",
        )
    return (rank if config.alpha is None else config.alpha) / rank


def _wrong(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.CHECKPOINT_WEIGHTS, at=at, problem=problem, remedy=remedy)
