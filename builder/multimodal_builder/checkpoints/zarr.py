"""`zarr`: the distributed form of NeMo before 2.0. A folder per tensor holds `.zarray` and one file per chunk.

Megatron-core writes version 2 without compression and filters, values in C order, chunks of one size over the whole
tensor, also where they reach beyond its end. bfloat16, which zarr does not know, is named as such.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multimodal_builder.checkpoints.boxes import MAX_PIECES, Box, fill
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.checkpoints.tensors import CARRIERS, TensorInfo, raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multimodal_builder.checkpoints.boxes import BoxReader, Slices
    from multimodal_builder.checkpoints.members import Members
    from multimodal_builder.checkpoints.tensors import Array

ARRAY_NAME: Final = ".zarray"
_ARRAY_LIMIT: Final = 2**16

DTYPES: Final = {
    "bfloat16": "BF16",
    "<f8": "F64",
    "<f4": "F32",
    "<f2": "F16",
    "<i8": "I64",
    "<i4": "I32",
    "<i2": "I16",
    "|i1": "I8",
    "|u1": "U8",
    "|b1": "BOOL",
}
"""numpy's names of types in `.zarray`, as safetensors calls them."""

Length = Annotated[int, Field(ge=0, le=2**48)]
ChunkLength = Annotated[int, Field(ge=1, le=2**48)]


class _ZarrArray(BaseModel):
    """`.zarray`. What is `None` in these types must be null in the file: a codec would be needed otherwise."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    zarr_format: Literal[2]
    shape: list[Length]
    chunks: list[ChunkLength]
    dtype: str
    order: Literal["C"]
    compressor: None
    filters: None
    fill_value: float | None
    dimension_separator: Literal[".", "/"] = "."


@dataclass(frozen=True, slots=True)
class _Stored:
    info: TensorInfo
    chunk: tuple[int, ...]
    fill: float | None
    """Of chunks without a file; None: there must be none."""
    separator: str


class ZarrBoxes:
    """The tensors of a folder of zarr arrays."""

    def __init__(self, members: Members, folder: str) -> None:
        """Read all descriptions.

        Raises:
            ProductError: one is damaged or asks for a codec, or chunks are missing or of another size.
        """
        self._members = members
        self._folder = folder
        self.at = f"{members.at}: {folder}"
        self._names = frozenset(members.names())
        pattern = re.compile(rf"{re.escape(folder)}/([^/]+)/{re.escape(ARRAY_NAME)}")
        found = sorted(match[1] for match in map(pattern.fullmatch, self._names) if match)
        self._stored = {name: self._read_array(name) for name in found}
        self._check_stored()

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, layers stacked."""
        return {name: stored.info for name, stored in self._stored.items()}

    def open_box(self, name: str, _box: Box, at: str) -> BoxReader:
        """Give what reads parts of a tensor, chunk by chunk."""
        stored = self._stored[name]

        def read(array: Array, part: Box) -> None:
            for index in _grid(part, stored.chunk, at):
                chunk = Box(tuple(place * size for place, size in zip(index, stored.chunk, strict=True)), stored.chunk)
                if (common := part.common(chunk)) is not None:
                    self._read_chunk(self._file(name, stored, index), stored, array, common, at)

        return read

    def shards(self, name: str, axis: int) -> int:
        """Count the chunks along an axis."""
        stored = self._stored[name]
        return -(-stored.info.shape[axis] // stored.chunk[axis])

    def _read_chunk(self, file: str, stored: _Stored, array: Array, common: tuple[Slices, Slices], at: str) -> None:
        if file not in self._names:
            array[common[0]] = _fill_value(stored, f"{at}: chunk {file.rpartition('/')[2]}")
            return
        window = self._members.open(file)
        whole = prod(stored.chunk) * array.itemsize
        if window.size != whole:
            raise unreadable(window.at, f"{window.size} bytes, where chunks of this tensor have {whole}")

        def read_rows(rows: Array, first: int, index: tuple[int, ...]) -> None:
            start = sum(place * prod(stored.chunk[axis + 1 :]) for axis, place in enumerate((*index, first)))
            window.part(start * array.itemsize, rows.nbytes, at).read_into(raw(rows))

        fill(array, *common, stored.chunk, read_rows)

    def _file(self, name: str, stored: _Stored, index: tuple[int, ...]) -> str:
        return f"{self._folder}/{name}/{stored.separator.join(map(str, index)) or '0'}"

    def _read_array(self, name: str) -> _Stored:
        member = self._members.open(f"{self._folder}/{name}/{ARRAY_NAME}")
        try:
            found = _ZarrArray.model_validate(json.loads(member.read(_ARRAY_LIMIT)))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise unreadable(
                f"{member.at}: {key}",
                f"{str(first['input'])[:60]}: {first['msg'].lower()}",
                "save the checkpoint with Megatron-core, which writes zarr without compression",
            ) from error
        except (ValueError, RecursionError) as error:
            raise unreadable(member.at, f"not the description of an array: {str(error)[:200]}") from error
        if found.dtype not in DTYPES or len(found.shape) != len(found.chunks):
            raise unreadable(
                member.at, f"type {found.dtype[:60]} and chunks {found.chunks[:8]} are not those of weights"
            )
        info = TensorInfo(DTYPES[found.dtype], tuple(found.shape))
        return _Stored(info, tuple(found.chunks), found.fill_value, found.dimension_separator)

    def _check_stored(self) -> None:
        """Require that the files hold at least half of the values: fill values are for small gaps, not for weights."""
        sizes = {file: self._members.open(file).size for file in self._names if file.startswith(f"{self._folder}/")}
        needed = sum(stored.info.nbytes for stored in self._stored.values())
        if needed > 2 * sum(sizes.values()):
            raise unreadable(self.at, f"its files hold {sum(sizes.values())} of {needed} bytes of weights")


def _grid(box: Box, chunk: tuple[int, ...], at: str) -> Iterator[tuple[int, ...]]:
    """List the places in the grid of chunks that a box touches."""
    ranges = [
        range(start // length, -(-(start + size) // length))
        for start, size, length in zip(box.offsets, box.sizes, chunk, strict=True)
    ]
    if prod(map(len, ranges)) > MAX_PIECES:
        raise unreadable(at, f"it is cut into more than {MAX_PIECES} chunks")
    return product(*ranges)


def _fill_value(stored: _Stored, at: str) -> Any:  # noqa: ANN401 (a numpy scalar)
    """Give the value of a chunk without a file.

    Raises:
        ProductError: the array has no fill value, or one that its type cannot hold without rounding.
    """
    carrier = CARRIERS[stored.info.dtype]
    if stored.fill is None:
        raise unreadable(at, "the file is missing, and the array has no fill value")
    if stored.info.dtype == "BF16":
        if stored.fill != 0:
            raise unreadable(at, f"the file is missing, and {stored.fill} is no fill value that NeMo writes")
        return carrier.type(0)
    return np.asarray(stored.fill).astype(carrier)
