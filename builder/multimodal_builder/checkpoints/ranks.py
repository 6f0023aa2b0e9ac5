"""Classic weights of parallel training: a file per rank, merged tensor by tensor when they are read.

Tensor-parallel ranks hold slices: rows of the layers that fan out, columns of those that come back, copies of the rest.
Pipeline stages hold some layers each, and number them from 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.checkpoints.names import NamedSource
from multimodal_builder.checkpoints.tensors import CARRIERS, TensorInfo, row_reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multimodal_builder.checkpoints.config import ParallelConfig
    from multimodal_builder.checkpoints.members import Members
    from multimodal_builder.checkpoints.tensors import Array, RowReader, TensorSource

ROWS: Final = 0
COLUMNS: Final = 1

_BACKBONE: Final = r"model\.(?:embedding\.word_embeddings\.)?vision_encoder\.backbone\.transformer\.layers\.\d+"

SLICES: Final = tuple(
    (re.compile(pattern), axis)
    for pattern, axis in (
        (r"model\.(?:embedding\.word_embeddings|output_layer)\.weight", ROWS),
        (r"model\..*\.self_attention\.linear_qkv\.(?:weight|bias)", ROWS),
        (r"model\..*\.mlp\.(?:experts\.local_experts\.\d+\.)?linear_fc1\.(?:weight|bias)", ROWS),
        (r"model\..*\.self_attention\.linear_proj\.weight", COLUMNS),
        (r"model\..*\.mlp\.(?:experts\.local_experts\.\d+\.)?linear_fc2\.weight", COLUMNS),
        # Layers of NeMo's own tower.
        (rf"{_BACKBONE}\.(?:self_attention\.query_key_value|mlp\.dense_h_to_4h)\.(?:weight|bias)", ROWS),
        (rf"{_BACKBONE}\.(?:self_attention\.dense|mlp\.dense_4h_to_h)\.weight", COLUMNS),
        # LoRA: A is cut as the layer's inputs are where these are cut, else by rank; B always has the layer's rows.
        (r"model\..*\.adapter_layer\.lora_(?:dense_attention|(?:moe_)?4htoh)_adapter\..*linear_in\.weight", COLUMNS),
        (r"model\..*\.adapter_layer\.lora_\w+_adapter\..*linear_(?:in|out)\.weight", ROWS),
    )
)
"""The axis that tensor-parallel ranks share. All others are copies, as norms, routers and biases of the way back."""

_GATED: Final = re.compile(
    r"model\.decoder\.layers\..*"
    r"(?:linear_fc1\.(?:weight|bias)|lora_hto4h_adapter\.linear_out\.weight|lora_moe_hto4h_adapter\..*linear_out\.weight)"
)
"""With a gated activation each rank has its slice of the gate's rows, then its slice of the linear ones."""
_KINDS: Final = re.compile(rf"{_BACKBONE}\.self_attention\.query_key_value\.(?:weight|bias)")
"""May have a slice of the queries, then one of the keys, then one of the values."""
_COPIES: Final = re.compile(r"model\.decoder\..*")
"""Copies that Megatron keeps the same to the bit. Other modules are trained by each rank alone, and rank 0 counts."""
_LAYER: Final = re.compile(r"(model\.decoder\.layers\.)(\d+)(\..*)")
_STAGE_COPIES: Final = re.compile(r"model\.rotary_pos_emb\.inv_freq|perception\..*")
"""What every stage has: a buffer, and the speech encoder, which the first stage alone computes."""
_TIED: Final = frozenset({"model.output_layer.weight", "model.word_embeddings.weight"})
"""Copies of the embedding in the last stage, where head and embedding are one."""

RANK_FILE: Final = re.compile(
    r"(?:mp_rank_(?P<mp>\d{1,4})|tp_rank_(?P<tp>\d{1,4})_pp_rank_(?P<pp>\d{1,4}))/model_weights\.ckpt"
)


@dataclass(frozen=True, slots=True)
class _Merged:
    """A tensor and where its slices are, by tensor-parallel rank."""

    name: str
    """In the files; a pipeline stage numbers its layers from 0."""
    ranks: tuple[TensorSource, ...]
    axis: int | None
    runs: int
    """Parts of the whole tensor that each slice has a part of, one behind the other."""
    info: TensorInfo


class RankedSource:
    """The weights of all ranks as one model's."""

    def __init__(self, members: Members, config: ParallelConfig) -> None:
        """Read the pickles of all ranks.

        Raises:
            ProductError: one is damaged or unsafe, ranks are missing, or slices do not fit together.
        """
        self._at = members.at
        self._config = config
        self._tensors: dict[str, _Merged] = {}
        layers = 0
        stages = _stages(members, config)
        for stage in stages:
            first = stage[0].infos()
            for name in first:
                match = _LAYER.fullmatch(name)
                self._add(name, f"{match[1]}{int(match[2]) + layers}{match[3]}" if match else name, stage)
            layers += len({match[2] for match in map(_LAYER.fullmatch, first) if match})

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, whole, in the order of the files of rank 0."""
        return {name: merged.info for name, merged in self._tensors.items()}

    def read(self, name: str) -> Array:
        """Read all slices of a tensor and put them together.

        Raises:
            ProductError: what should be copies of one tensor differs between ranks.
        """
        merged = self._tensors[name]
        info = merged.info
        first, *others = (rank.read(merged.name) for rank in merged.ranks)
        if merged.axis is None:
            if any(other.tobytes() != first.tobytes() for other in others):
                raise unreadable(f"{self._at}: {name}", "the ranks hold different copies of this tensor")
            return first
        if not others:
            return first
        parts = [first, *others]
        cut = [np.split(part, merged.runs) for part in parts]
        parts = [of_rank[run] for run in range(merged.runs) for of_rank in cut]
        return np.concatenate(parts, axis=merged.axis, out=empty(info.shape, CARRIERS[info.dtype]))

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor that one rank has alone."""
        merged = self._tensors[name]
        first, *others = merged.ranks
        return None if others else row_reader(first, merged.name)

    def _add(self, stored: str, name: str, ranks: tuple[TensorSource, ...]) -> None:
        if name in self._tensors and _STAGE_COPIES.fullmatch(name) is not None:
            return
        if name in _TIED and self._config.tied:
            return
        if name in self._tensors:
            raise unreadable(f"{self._at}: {name}", "two pipeline stages hold this tensor")
        axis = next((axis for pattern, axis in SLICES if pattern.fullmatch(name)), None)
        runs = self._runs(name)
        found = [rank.infos().get(stored) for rank in ranks]
        infos = [info for info in found if info is not None]
        if len(infos) != len(ranks):
            raise unreadable(f"{self._at}: {stored}", f"only {len(infos)} of {len(ranks)} ranks hold this tensor")
        if axis is None and _COPIES.fullmatch(name) is None:
            ranks = ranks[:1]
        self._tensors[name] = _Merged(stored, ranks, axis, runs, self._whole(name, infos, axis, runs))

    def _runs(self, name: str) -> int:
        if self._config.gated and _GATED.fullmatch(name):
            return len(("gate", "up"))
        return len("qkv") if self._config.kinds_apart and _KINDS.fullmatch(name) else 1

    def _whole(self, name: str, infos: list[TensorInfo], axis: int | None, runs: int) -> TensorInfo:
        first = infos[0]
        fitting = all(info == first for info in infos) and len(first.shape) > (axis or 0)
        if axis is None and all(info == first for info in infos):
            return first
        if axis is None or not fitting or first.shape[0] % runs:
            shapes = ", ".join(str(list(info.shape)) for info in infos[:8])
            raise unreadable(f"{self._at}: {name}", f"its slices of shapes {shapes} do not fit together")
        shape = list(first.shape)
        shape[axis] *= len(infos)
        return TensorInfo(first.dtype, tuple(shape))


def _stages(members: Members, config: ParallelConfig) -> list[tuple[TensorSource, ...]]:
    """Open the files, by pipeline stage and tensor-parallel rank."""
    files = dict(_rank_files(members))
    slices = sorted({tensor for _, tensor in files})
    stages = sorted({pipeline for pipeline, _ in files})
    whole = slices == list(range(len(slices))) and stages == list(range(len(stages)))
    wanted = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    if not whole or len(files) != len(slices) * len(stages) or len(files) < wanted:
        raise config_error(
            f"{members.at}: {min(files.values())}",
            f"the checkpoint was saved by {max(wanted, len(slices) * len(stages))} ranks, "
            f"and holds the weights of {len(files)}: {', '.join(sorted(files.values())[:8])}",
            "copy the weights of all ranks",
        )
    return [tuple(_open(members, files[pipeline, tensor]) for tensor in slices) for pipeline in stages]


def _open(members: Members, name: str) -> TensorSource:
    return NamedSource(CkptSource(members.open(name)), f"{members.at}: {name}")


def _rank_files(members: Members) -> Iterator[tuple[tuple[int, int], str]]:
    for name in members.names():
        if (match := RANK_FILE.fullmatch(name)) is not None:
            yield (int(match["pp"] or 0), int(match["mp"] or match["tp"] or 0)), name
