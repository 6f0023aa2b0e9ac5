"""`torch_dist`: torch's distributed checkpoints as Megatron-core writes them, without torch and without Megatron.

`.metadata` says for each tensor which box of it lies where; each box is a small `torch.save` file inside a `.distcp`
file. Decoder layers are stacked: one tensor for all layers, its first axis is the layer's number.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints import restricted_pickle
from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.checkpoints.members import clean_name
from multimodal_builder.checkpoints.restricted_pickle import Record
from multimodal_builder.checkpoints.tensors import CARRIERS, Array, TensorInfo
from multimodal_builder.checkpoints.torch_zip import DTYPES, StoredTensor, TorchZip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import EllipsisType

    from multimodal_builder.checkpoints.members import Members

METADATA_NAME: Final = ".metadata"
FORMAT_NAME: Final = "metadata.json"
BACKEND: Final = ("torch_dist", 1)
"""`sharded_backend` and its version."""

_STACK: Final = re.compile(r"(?P<stack>.*\.layers)\.(?P<rest>[^0-9].*)")
"""A key of stacked layers; the vision tower's keys have numbers."""

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """A range of a `.distcp` file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A box of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: _Place

    def overlap(self, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[Box, Box] | None:
        """Intersect with another box: the common part, as seen from the other and from this one."""
        other, mine = [], []
        for own, own_size, start, size in zip(self.offsets, self.sizes, offsets, sizes, strict=True):
            low, high = max(own, start), min(own + own_size, start + size)
            if low >= high:
                return None
            other.append(slice(low - start, high - start))
            mine.append(slice(low - own, high - own))
        return tuple(other), tuple(mine)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor as the file has it."""

    info: TensorInfo
    chunks: tuple[_Chunk, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as it is given out: all of a stored one, or one layer of it."""

    stored: str
    layer: int | None
    info: TensorInfo


class DistributedSource:
    """A folder `model_weights/` with `.metadata`, `.distcp` files and `metadata.json`."""

    def __init__(self, members: Members, folder: str) -> None:
        """Read the index.

        Raises:
            ProductError: it is damaged, unsafe, of another format, or places data outside its files.
        """
        self._members = members
        self._folder = folder
        self.at = f"{members.at}: {folder}"
        self._check_format()
        self._stored = dict(self._read_metadata())
        self._views = {name: view for stored in self._in_file_order() for name, view in self._views_of(stored)}

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, layers apart."""
        return {name: view.info for name, view in self._views.items()}

    def read(self, name: str) -> Array:
        """Assemble one tensor from its chunks, whatever their number and order.

        Raises:
            ProductError: they do not cover it exactly, or are not what the index says.
        """
        view = self._views[name]
        stored = self._stored[view.stored]
        at = f"{self.at}: {name}"
        shape = stored.info.shape
        if view.layer is None:
            offsets, sizes = (0,) * len(shape), shape
        else:
            offsets, sizes = (view.layer, *(0 for _ in shape[1:])), (1, *shape[1:])
        array = empty(sizes, CARRIERS[stored.info.dtype])
        boxes: list[Box] = []
        for chunk in stored.chunks:
            if (common := chunk.overlap(offsets, sizes)) is not None:
                target, origin = common
                inside: tuple[slice | EllipsisType, ...] = (*target, ...)  # a view, also of a tensor without axes
                self._read_chunk(chunk, stored.info.dtype, array[inside], origin, at)
                boxes.append(target)
        _check_cover(boxes, sizes, at)
        return array.reshape(view.info.shape)

    def _check_format(self) -> None:
        member = self._members.open(f"{self._folder}/{FORMAT_NAME}")
        try:
            described = json.loads(member.read())
            found = (described["sharded_backend"], described["sharded_backend_version"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unreadable(member.at, f"not the description of a distributed checkpoint: {error!r}") from error
        if found != BACKEND:
            raise unreadable(
                member.at,
                f"weights in the format {found[0]} version {found[1]}",
                f"convert them to {BACKEND[0]} version {BACKEND[1]} with NeMo's convert_zarr_to_torch_dist.py",
            )

    def _read_metadata(self) -> Iterator[tuple[str, _Stored]]:
        member = self._members.open(f"{self._folder}/{METADATA_NAME}")
        metadata = restricted_pickle.load(member.read(), allowed=restricted_pickle.DISTRIBUTED, at=member.at)
        places = dict(_places(metadata, member.at))
        for name, entry in _dictionary(metadata, "state_dict_metadata", member.at).items():
            if not isinstance(name, str):
                raise unreadable(member.at, f"a tensor is named {name!r}")
            if isinstance(entry, Record) and entry.field("chunks") is not None:
                yield name, _stored(name, entry, places, f"{member.at}: {name}")

    def _in_file_order(self) -> list[str]:
        def first(name: str) -> tuple[str, int]:
            places = [chunk.place for chunk in self._stored[name].chunks]
            return min(((place.file, place.offset) for place in places), default=("", 0))

        return sorted(self._stored, key=first)

    def _views_of(self, name: str) -> Iterator[tuple[str, _View]]:
        """Take stacked layers apart."""
        info = self._stored[name].info
        match = _STACK.fullmatch(name)
        if match is None or not info.shape:
            yield name, _View(name, None, info)
            return
        for layer in range(info.shape[0]):
            part = TensorInfo(info.dtype, info.shape[1:])
            yield f"{match['stack']}.{layer}.{match['rest']}", _View(name, layer, part)

    def _read_chunk(self, chunk: _Chunk, dtype: str, target: Array, origin: Box, at: str) -> None:
        """Read a box of a chunk; of a chunk that holds several layers, only the rows of those in the box."""
        place = chunk.place
        name = clean_name(place.file, self.at)
        window = self._members.open(f"{self._folder}/{name}").part(
            place.offset, place.length, f"{self.at}/{name}: {at}"
        )
        archive = TorchZip(window)
        tensor = archive.load()
        if not isinstance(tensor, StoredTensor) or tensor.info != TensorInfo(dtype, chunk.sizes):
            raise unreadable(at, f"{name} holds something else at offset {place.offset} than {METADATA_NAME} says")
        if not origin:
            archive.read_rows(tensor, target, 0, at)
            return
        first, *rest = origin
        rows = (first.stop - first.start, *chunk.sizes[1:])
        whole = target.shape == rows and target.flags.c_contiguous
        read = target if whole else empty(rows, target.dtype)
        archive.read_rows(tensor, read, first.start, at)
        if not whole:
            target[...] = read[:, *rest]


def _dictionary(metadata: object, field: str, at: str) -> dict[object, object]:
    found = metadata.field(field) if isinstance(metadata, Record) else None
    if not isinstance(found, dict):
        raise unreadable(at, f"the index has no dictionary {field}")
    return found


def _places(metadata: object, at: str) -> Iterator[tuple[tuple[str, tuple[int, ...]], _Place]]:
    """Read where each chunk lies, by tensor name and offsets; byte objects have no offsets and are left out."""
    for index, info in _dictionary(metadata, "storage_data", at).items():
        if not isinstance(index, Record) or not isinstance(info, Record):
            raise unreadable(at, "the index of storages holds something else")
        if index.field("offset") is None:
            continue
        name, offsets = index.field("fqn"), _sizes(index.field("offset"), at)
        place = (info.field("relative_path"), info.field("offset"), info.field("length"))
        if info.field("transform_descriptors"):
            raise unreadable(f"{at}: {name}", "the data are compressed", "save the checkpoint without compression")
        match place:
            case (str() as file, int() as start, int() as length) if start >= 0 and length >= 0:
                yield (name, offsets), _Place(file, start, length)
            case _:
                raise unreadable(f"{at}: {name}", f"stored at {place}, which is no place")


def _stored(name: str, entry: Record, places: Mapping[tuple[str, tuple[int, ...]], _Place], at: str) -> _Stored:
    info = TensorInfo(_dtype(entry.field("properties"), at), _sizes(entry.field("size"), at))
    chunks: list[_Chunk] = []
    for chunk in entry.field("chunks"):
        if not isinstance(chunk, Record):
            raise unreadable(at, "a chunk is no chunk")
        offsets, sizes = _sizes(chunk.field("offsets"), at), _sizes(chunk.field("sizes"), at)
        inside = len(offsets) == len(sizes) == len(info.shape) and all(
            start + size <= length for start, size, length in zip(offsets, sizes, info.shape, strict=True)
        )
        if not inside:
            raise unreadable(at, f"a chunk of shape {sizes} at {offsets} is outside the tensor's {info.shape}")
        if (name, offsets) not in places:
            raise unreadable(at, f"the chunk at {offsets} is stored nowhere")
        chunks.append(_Chunk(offsets, sizes, places[name, offsets]))
    return _Stored(info, tuple(chunks))


def _dtype(properties: object, at: str) -> str:
    """Read the type from `TensorProperties`, whose state is a tuple that begins with it."""
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise unreadable(at, f"a tensor of type {dtype}")
    return DTYPES[dtype]


def _sizes(value: object, at: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(size, int) and size >= 0 for size in value):
        raise unreadable(at, f"{str(value)[:80]} where sizes or offsets should be")
    return value


def _check_cover(boxes: list[Box], sizes: tuple[int, ...], at: str) -> None:
    """Require that boxes inside a tensor cover each of its values exactly once."""
    covered = sum(prod(side.stop - side.start for side in box) for box in boxes)
    disjoint = not any(
        all(one.start < other.stop and other.start < one.stop for one, other in zip(first, second, strict=True))
        for first, second in combinations(boxes, 2)
    )
    if covered != prod(sizes) or not disjoint:
        raise unreadable(at, f"its chunks cover {covered} of {prod(sizes)} values, or overlap")
