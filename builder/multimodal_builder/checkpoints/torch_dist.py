"""`torch_dist`: torch's distributed checkpoints as Megatron-core writes them, without torch and without Megatron.

`.metadata` says for each tensor which box of it lies where; each box is a small `torch.save` file inside a `.distcp`
file. Decoder layers are stacked: one tensor for all layers, its first axis is the layer's number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints import restricted_pickle
from multimodal_builder.checkpoints.boxes import Box, check_cover, fill
from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.errors import shown, unreadable
from multimodal_builder.checkpoints.members import clean_name
from multimodal_builder.checkpoints.restricted_pickle import Record
from multimodal_builder.checkpoints.tensors import CARRIERS, MAX_LENGTH, TensorInfo
from multimodal_builder.checkpoints.torch_zip import DTYPES, StoredTensor, TorchZip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from multimodal_builder.checkpoints.boxes import BoxReader
    from multimodal_builder.checkpoints.members import Members
    from multimodal_builder.checkpoints.tensors import Array
    from multimodal_builder.checkpoints.window import Window

METADATA_NAME: Final = ".metadata"


@dataclass(frozen=True, slots=True)
class _Place:
    """A range of a `.distcp` file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a tensor, and where it lies."""

    box: Box
    place: _Place


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor as the file has it."""

    info: TensorInfo
    chunks: tuple[_Chunk, ...]


class TorchDistBoxes:
    """The tensors of a folder with `.metadata` and `.distcp` files."""

    def __init__(self, members: Members, folder: str) -> None:
        """Read the index.

        Raises:
            ProductError: it is damaged, unsafe, or places data outside its files.
        """
        self._members = members
        self._folder = folder
        self.at = f"{members.at}: {folder}"
        self._stored = dict(self._read_metadata())
        self._check_places()

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, layers stacked, in the order of the files."""

        def first(name: str) -> tuple[str, int]:
            places = [chunk.place for chunk in self._stored[name].chunks]
            return min(((place.file, place.offset) for place in places), default=("", 0))

        return {name: self._stored[name].info for name in sorted(self._stored, key=first)}

    def open_box(self, name: str, box: Box, at: str) -> BoxReader:
        """Give what reads parts of a box from the chunks of a tensor, whatever their number and order.

        Raises:
            ProductError: they do not cover it exactly.
        """
        stored = self._stored[name]
        found = [(chunk, common) for chunk in stored.chunks if (common := box.common(chunk.box)) is not None]
        check_cover([inside for _, (inside, _) in found], box.sizes, at)
        chunks = [chunk for chunk, _ in found]
        opened = _Opened(box, lambda: [self._open_chunk(chunk, stored.info.dtype, at) for chunk in chunks])
        return opened.read

    def shards(self, name: str, axis: int) -> int:
        """Count the chunks along an axis."""
        return len({chunk.box.offsets[axis] for chunk in self._stored[name].chunks})

    def _check_places(self) -> None:
        """Require that all chunks lie inside their files, and tensors are no larger than them: nothing is compressed.

        A truncated copy is so found before anything is converted, and a forged shape before memory is asked for.
        """
        chunks = [(name, chunk.place) for name, stored in self._stored.items() for chunk in stored.chunks]
        files = {file: self._file(file) for file in {place.file for _, place in chunks}}
        for name, place in chunks:
            files[place.file].part(place.offset, place.length, f"{files[place.file].at}: {name}")
        held = sum(window.size for window in files.values())
        needed = sum(stored.info.nbytes for stored in self._stored.values())
        if needed > held:
            raise unreadable(self.at, f"its index places {needed} bytes of weights in files of {held}")

    def _file(self, name: str) -> Window:
        return self._members.open(f"{self._folder}/{clean_name(name, self.at)}")

    def _read_metadata(self) -> Iterator[tuple[str, _Stored]]:
        member = self._members.open(f"{self._folder}/{METADATA_NAME}")
        metadata = restricted_pickle.load(member.read(), allowed=restricted_pickle.DISTRIBUTED, at=member.at)
        places = dict(_places(metadata, member.at))
        for name, entry in _dictionary(metadata, "state_dict_metadata", member.at).items():
            if not isinstance(name, str):
                raise unreadable(member.at, f"a tensor is named {shown(name)}")
            if isinstance(entry, Record) and isinstance(entry.field("chunks"), list):
                yield name, _stored(name, entry, places, f"{member.at}: {name}")

    def _open_chunk(self, chunk: _Chunk, dtype: str, at: str) -> _OpenChunk:
        place = chunk.place
        window = self._file(place.file).part(place.offset, place.length, f"{self.at}/{place.file}: {at}")
        archive = TorchZip(window)
        tensor = archive.load()
        if not isinstance(tensor, StoredTensor) or tensor.info != TensorInfo(dtype, chunk.box.sizes):
            raise unreadable(
                at, f"{place.file} holds something else at offset {place.offset} than {METADATA_NAME} says"
            )
        tensor.check(at)
        return _OpenChunk(chunk.box, archive, tensor, at)


@dataclass(frozen=True, slots=True)
class _OpenChunk:
    """A chunk whose own index was read."""

    box: Box
    archive: TorchZip
    tensor: StoredTensor
    at: str

    def read(self, array: Array, part: Box) -> None:
        """Fill what a part of the tensor, which the array is, has in common with the chunk."""

        def read_rows(rows: Array, first: int, index: tuple[int, ...]) -> None:
            self.archive.read_rows(self.tensor.inside(index), rows, first, self.at)

        if (common := part.common(self.box)) is not None:
            fill(array, *common, self.box.sizes, read_rows)


class _Opened:
    """The chunks of a box; their indices are read with the first part of it, and once."""

    def __init__(self, box: Box, open_chunks: Callable[[], list[_OpenChunk]]) -> None:
        self._box = box
        self._open_chunks = open_chunks

    def read(self, array: Array, part: Box) -> None:
        """Fill an array with a part of the box."""
        if part == self._box or all(chunk.tensor.contiguous for chunk in self._chunks):
            for chunk in self._chunks:
                chunk.read(array, part)
        else:
            mine, _ = self._box.common(part) or ((), ())
            array[...] = self._whole[mine]

    @cached_property
    def _chunks(self) -> list[_OpenChunk]:
        return self._open_chunks()

    @cached_property
    def _whole(self) -> Array:
        """All of the box: where values lie in another order, a few rows may take as much reading as all of them."""
        array = empty(self._box.sizes, CARRIERS[self._chunks[0].tensor.storage.dtype])
        self.read(array, self._box)
        return array


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
        name, offsets = str(index.field("fqn")), _sizes(index.field("offset"), at)
        place = (info.field("relative_path"), info.field("offset"), info.field("length"))
        if info.field("transform_descriptors"):
            raise unreadable(f"{at}: {name}", "the data are compressed", "save the checkpoint without compression")
        match place:
            case (str() as file, int() as start, int() as length) if start >= 0 and length >= 0:
                yield (name, offsets), _Place(file, start, length)
            case _:
                raise unreadable(f"{at}: {name}", f"stored at {shown(place)}, which is no place")


def _stored(name: str, entry: Record, places: Mapping[tuple[str, tuple[int, ...]], _Place], at: str) -> _Stored:
    info = TensorInfo(_dtype(entry.field("properties"), at), _sizes(entry.field("size"), at))
    chunks: list[_Chunk] = []
    for chunk in entry.field("chunks"):
        if not isinstance(chunk, Record):
            raise unreadable(at, "a chunk is no chunk")
        box = Box(_sizes(chunk.field("offsets"), at), _sizes(chunk.field("sizes"), at))
        if not box.inside(info.shape):
            raise unreadable(at, f"a chunk of shape {box.sizes} at {box.offsets} is outside the tensor's {info.shape}")
        if (name, box.offsets) not in places:
            raise unreadable(at, f"the chunk at {box.offsets} is stored nowhere")
        chunks.append(_Chunk(box, places[name, box.offsets]))
    return _Stored(info, tuple(chunks))


def _dtype(properties: object, at: str) -> str:
    """Read the type from `TensorProperties`, whose state is a tuple that begins with it."""
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise unreadable(at, f"a tensor of type {shown(dtype)}")
    return DTYPES[dtype]


def _sizes(value: object, at: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(size, int) and 0 <= size <= MAX_LENGTH for size in value):
        raise unreadable(at, f"{shown(value)} where sizes or offsets should be")
    return value
