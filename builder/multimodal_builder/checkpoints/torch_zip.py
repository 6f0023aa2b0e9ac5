"""What `torch.save` writes: a zip of one pickle and one uncompressed member per storage."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from math import prod
from struct import Struct
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from multimodal_builder.checkpoints import restricted_pickle
from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.errors import shown, unreadable, unsafe
from multimodal_builder.checkpoints.strided import (
    MOST_EXPANDED,
    PIECE_BYTES,
    gather,
    is_contiguous,
    shares_values,
    span,
)
from multimodal_builder.checkpoints.tensors import CARRIERS, MAX_LENGTH, Array, TensorInfo, raw
from multimodal_builder.checkpoints.window import WindowReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.window import Window

DTYPES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's names of types, as safetensors calls them."""

STORAGES: Final = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}

# Written by torch before 1.6, and by later ones on request: one pickle after another, with the storages between.
_LEGACY_MAGIC: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_ZIP_MAGIC: Final = b"PK\x03\x04"
_LOCAL_HEADER: Final = Struct("<4s22xHH")  # signature; lengths of the name and of the extra field, at 26 and 28


@dataclass(frozen=True, slots=True)
class Storage:
    """A tensor's values, or those of several: a member of the zip."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's description in the pickle; its values lie in a member of the zip."""

    storage: Storage
    offset: int
    """Of the first value in the storage, in values."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In values."""

    @property
    def info(self) -> TensorInfo:
        """Type and shape."""
        return TensorInfo(self.storage.dtype, self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether its values lie one behind the other."""
        return prod(self.shape) == 0 or is_contiguous(self.shape, self.strides)

    def inside(self, index: tuple[int, ...]) -> StoredTensor:
        """Give what lies at an index of the first axes."""
        start = sum(place * stride for place, stride in zip(index, self.strides, strict=False))
        axes = len(index)
        return StoredTensor(self.storage, self.offset + start, self.shape[axes:], self.strides[axes:])

    def check(self, at: str) -> None:
        """Require that all values lie inside the storage, and that they are not many more than it holds.

        Raises:
            ProductError: they do not, or are.
        """
        sizes = (self.offset, *self.shape, *self.strides)
        if any(not isinstance(size, int) or not 0 <= size <= MAX_LENGTH for size in sizes):
            raise unreadable(
                at, f"offset {shown(self.offset)}, shape {shown(self.shape)}, strides {shown(self.strides)} are none"
            )
        if len(self.strides) != len(self.shape):
            raise unreadable(at, f"strides {self.strides} for shape {self.shape}")
        if self.offset + span(self.shape, self.strides) > self.storage.elements:
            raise unreadable(
                at, f"shape {self.shape} at {self.offset} exceeds its {self.storage.elements} stored values"
            )
        if shares_values(self.shape, self.strides) and not self._is_small():
            raise unreadable(
                at, f"shape {self.shape} with strides {self.strides} repeats stored values", "save it contiguous"
            )

    def _is_small(self) -> bool:
        held = span(self.shape, self.strides) * CARRIERS[self.storage.dtype].itemsize
        return held <= PIECE_BYTES and prod(self.shape) <= MOST_EXPANDED


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *_rest: object
) -> StoredTensor:  # what else torch passes concerns training
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise pickle.UnpicklingError("a tensor without storage, shape or strides")
    return StoredTensor(storage, cast("int", offset), shape, strides)


def _rebuild_parameter(data: object, *_rest: object) -> object:
    return data


_ALLOWED: Final[Mapping[tuple[str, str], object]] = {
    **restricted_pickle.CONTAINERS,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class TorchZip:
    """One file, or one piece of a `.distcp` file, that `torch.save` wrote."""

    def __init__(self, window: Window) -> None:
        """Read the directory of the zip.

        Raises:
            ProductError: it is another format, damaged, or its members are compressed.
        """
        self._window = window
        self.at = window.at
        magic = window.part(0, min(len(_LEGACY_MAGIC), window.size), window.at).read()
        if magic == _LEGACY_MAGIC:
            raise unreadable(self.at, "written in torch's format before 1.6", "load and save it with a newer torch")
        if not magic.startswith(_ZIP_MAGIC):
            raise unreadable(self.at, "neither a zip nor otherwise written by torch.save")
        try:
            with zipfile.ZipFile(cast("BinaryIO", WindowReader(window))) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, OverflowError, EOFError, NotImplementedError, RuntimeError) as error:
            raise unreadable(self.at, f"the zip is damaged or truncated: {error}") from error
        self._root = next(
            (e.filename.removesuffix("data.pkl") for e in entries if e.filename.endswith("/data.pkl")), ""
        )
        self._entries = {entry.filename.removeprefix(self._root): entry for entry in entries}
        if len(self._entries) != len(entries):
            raise unsafe(self.at, "two members of the zip have the same name")
        if "byteorder" in self._entries and self._member("byteorder").read() != b"little":
            raise unreadable(self.at, "written on a big-endian machine", "load and save it on a little-endian one")

    def load(self) -> object:
        """Read the pickle; tensors in it are `StoredTensor`, values that no reader needs are `Opaque`.

        Raises:
            ProductError: it is damaged or unsafe.
        """
        member = self._member("data.pkl")
        return restricted_pickle.load(member.read(), allowed=_ALLOWED, at=member.at, persistent=_storage)

    def read(self, tensor: StoredTensor, at: str) -> Array:
        """Read a tensor's values.

        Raises:
            ProductError: they are not where the pickle says.
        """
        array = empty(tensor.shape, CARRIERS[tensor.storage.dtype])
        self.read_rows(tensor, array, 0, at)
        return array

    def read_rows(self, tensor: StoredTensor, rows: Array, first: int, at: str) -> None:
        """Read some rows of a tensor, and no others.

        Args:
            tensor: From the pickle.
            rows: C-contiguous, of the tensor's type; is filled.
            first: Which row of the tensor its first one is.
            at: What to call the tensor in an error.

        Raises:
            ProductError: they are not where the pickle says.
        """
        tensor.check(at)
        size = CARRIERS[tensor.storage.dtype].itemsize
        member = self._member(f"data/{tensor.storage.key}")
        if member.size < tensor.storage.elements * size:
            raise unreadable(at, f"{member.size} bytes stored, {tensor.storage.elements * size} announced")

        def read(buffer: memoryview, start: int) -> None:
            member.part(start * size, buffer.nbytes, at).read_into(buffer)

        if not tensor.contiguous:
            gather(rows, tensor.strides, tensor.offset + first * tensor.strides[0], read)
        elif rows.size:
            read(raw(rows), tensor.offset + first * prod(tensor.shape[1:]))

    def position(self, tensor: StoredTensor) -> int:
        """Give a number that grows with the place of the values in the file."""
        entry = self._entries.get(f"data/{tensor.storage.key}")
        return entry.header_offset if entry else 0

    def _member(self, name: str) -> Window:
        """Find a member's bytes, which the zip keeps as they are."""
        at = f"{self.at}: {name}"
        entry = self._entries.get(name)
        if entry is None:
            raise unreadable(at, "the zip has no such member")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise unreadable(at, "the member is compressed", "save it with torch.save")
        header = self._window.part(entry.header_offset, _LOCAL_HEADER.size, at).read()
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if signature != _ZIP_MAGIC:
            raise unreadable(at, "the zip's directory points to something else than a member")
        start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        return self._window.part(start, entry.file_size, at)


def _storage(pid: object) -> Storage:
    """Read torch's persistent id: ("storage", type, key, device, number of values)."""
    match pid:
        case ("storage", str() as dtype, str() as key, _, int() as elements) if (
            dtype in CARRIERS and 0 <= elements <= MAX_LENGTH
        ):
            return Storage(dtype, key, elements)
    raise pickle.UnpicklingError(f"a persistent id that is no storage: {shown(pid)}")
