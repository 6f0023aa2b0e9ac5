"""Distributed forms stack layers and experts; here they are taken apart, and each is read alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Final, Protocol

from multimodal_builder.checkpoints.boxes import Box
from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.checkpoints.tensors import CARRIERS, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multimodal_builder.checkpoints.boxes import BoxReader
    from multimodal_builder.checkpoints.tensors import Array, RowReader

MAX_VIEWS: Final = 100_000
"""Layers and experts of one stacked tensor; the largest models have some ten thousand."""

_LAYERS: Final = re.compile(r"(.*\.layers)\.([^0-9].*)")
"""A key of stacked layers; keys of a Hugging Face tower carry their number instead."""
_EXPERTS: Final = re.compile(r"(.*\.mlp\.experts)\.experts\.(.*)")
_ADAPTER: Final = ".adapter."
"""In names of NeMo 2's adapters: matrices, of one expert each or of all experts together."""


class BoxSource(Protocol):
    """Tensors as a distributed form stores them; any box of them can be read."""

    @property
    def at(self) -> str:
        """What to call the weights in an error."""

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, in the order in which reading them moves forward."""

    def open_box(self, name: str, box: Box, at: str) -> BoxReader:
        """Give what reads parts of a box of a tensor; it raises a `ProductError` where files lie about themselves.

        Raises:
            ProductError: the files do not cover the box exactly, as their index has it.
        """

    def shards(self, name: str, axis: int) -> int:
        """Count the chunks along an axis."""


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as it is given out: a stored one, or what lies at an index of its first axes."""

    stored: str
    index: tuple[int, ...]
    info: TensorInfo


class StackedSource:
    """The tensors of a distributed form, with the numbers of layers and experts in their names."""

    def __init__(self, boxes: BoxSource) -> None:
        self._boxes = boxes
        self._views = dict(view for name, info in boxes.infos().items() for view in self._views_of(name, info))

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors."""
        return {name: view.info for name, view in self._views.items()}

    def read(self, name: str) -> Array:
        """Read one tensor."""
        info = self._views[name].info
        array = empty(info.shape, CARRIERS[info.dtype])
        self.row_reader(name)(array, 0)
        return array

    def row_reader(self, name: str) -> RowReader:
        """Give what reads rows of a tensor, and one without axes as if it were a row."""
        view = self._views[name]

        def box(first: int, shape: tuple[int, ...]) -> Box:
            start = (first, *(0 for _ in shape[1:])) if shape else ()
            return Box((*view.index, *start), (*(1 for _ in view.index), *shape))

        read = self._boxes.open_box(view.stored, box(0, view.info.shape), f"{self._boxes.at}: {name}")

        def read_rows(rows: Array, first: int) -> None:
            part = box(first, rows.shape)
            read(rows.reshape(part.sizes), part)

        return read_rows

    def shards(self, name: str, axis: int) -> int:
        """Count the parts that a tensor is stored in along an axis."""
        view = self._views[name]
        return self._boxes.shards(view.stored, len(view.index) + axis)

    def _views_of(self, stored: str, info: TensorInfo) -> Iterator[tuple[str, _View]]:
        pattern, axes = _LAYERS.subn(r"\1.{}.\2", stored)
        if _ADAPTER in stored and len(info.shape) == axes + len(("rows", "columns")):
            pattern = _EXPERTS.sub(r"\1.\2", pattern)
        else:
            pattern, replaced = _EXPERTS.subn(r"\1.local_experts.{}.\2", pattern)
            axes += replaced
        counts, shape = info.shape[:axes], info.shape[axes:]
        if len(counts) < axes or prod(counts) > MAX_VIEWS:
            raise unreadable(f"{self._boxes.at}: {stored}", f"shape {info.shape} is not that of stacked layers")
        for index in product(*map(range, counts)):
            # Not str.format: a name may hold braces.
            name = pattern
            for number in index:
                name = name.replace("{}", str(number), 1)
            yield name, _View(stored, index, TensorInfo(info.dtype, shape))
