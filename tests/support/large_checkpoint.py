"""NeVA archives of any size, written front to back with little memory; with holes in place of values on request.

The layout is written down once more, without product code: tar members, and inside them the zips of `torch.save`, as
torch itself reads them (the tests of this module hold it to that).
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zlib
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import torch
import yaml
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from support.archives import CONFIG, DISTRIBUTED, Archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Shape = tuple[int, ...]
Fill = Callable[[BinaryIO, int], None] if TYPE_CHECKING else object
"""Puts so many bytes at the end of a file."""

FILES: Final = 2
"""Data files of a distributed checkpoint, as one process writes them."""
_MARK: Final = b'{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
_ALIGNMENT: Final = 64
_LIMIT32: Final = 0xFFFF_FFFF


@dataclass(frozen=True)
class Sizes:
    """Of a Llama in bfloat16; the defaults are those of the 13B one, with grouped keys."""

    layers: int
    hidden: int = 5120
    ffn: int = 13824
    heads: int = 40
    groups: int = 8
    rows: int = 32000

    @classmethod
    def of_bytes(cls, size: int) -> Sizes:
        """Give it as many layers as come nearest to a size."""
        outer, one = cls(layers=0).nbytes, cls(layers=1).nbytes
        return cls(layers=max(1, round((size - outer) / (one - outer))))

    @property
    def nbytes(self) -> int:
        return sum(2 * prod(shape) for shape in self.tensors().values())

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor, layers apart."""
        return 2 * max(self.rows, 2 * self.ffn) * self.hidden

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes as they are stacked in a distributed checkpoint."""
        size = self.hidden // self.heads
        layer: dict[str, Shape] = {
            "self_attention.linear_qkv.layer_norm_weight": (self.hidden,),
            "self_attention.linear_qkv.weight": ((self.heads + 2 * self.groups) * size, self.hidden),
            "self_attention.linear_proj.weight": (self.hidden, self.hidden),
            "mlp.linear_fc1.layer_norm_weight": (self.hidden,),
            "mlp.linear_fc1.weight": (2 * self.ffn, self.hidden),
            "mlp.linear_fc2.weight": (self.hidden, self.ffn),
        }
        projector = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."
        tower = Archive.read(DISTRIBUTED).config()["mm_cfg"]["vision_encoder"]["hidden_size"]
        return {
            "model.embedding.word_embeddings.weight": (self.rows, self.hidden),
            **{f"model.decoder.layers.{name}": (self.layers, *shape) for name, shape in layer.items()},
            "model.decoder.final_layernorm.weight": (self.hidden,),
            "model.output_layer.weight": (self.rows, self.hidden),
            f"{projector}0.weight": (self.hidden, tower),
            f"{projector}0.bias": (self.hidden,),
            f"{projector}2.weight": (self.hidden, self.hidden),
            f"{projector}2.bias": (self.hidden,),
        }


def hole(file: BinaryIO, size: int) -> None:
    """Leave out values: the file says how long it is, and the disk holds nothing."""
    file.seek(size, io.SEEK_CUR)


class Noise:
    """Values that cost next to nothing to make: one block of chance, from another place each time."""

    def __init__(self, size: int = 64 * 2**20) -> None:
        self._block = memoryview(np.random.default_rng(1).bytes(size))
        self._next = 0

    def __call__(self, file: BinaryIO, size: int) -> None:
        while size:
            part = self._block[self._next : self._next + size]
            file.write(part)
            size -= len(part)
            self._next = (self._next + len(part) + 4096 + 1) % (len(self._block) // 2)


def write_distributed(path: Path, sizes: Sizes, fill: Fill) -> None:
    """Write a `.nemo` whose weights are a `torch_dist` folder: a chunk for each layer, and fc1's halves apart."""
    places: dict[MetadataIndex, _StorageInfo] = {}
    entries = {name: _entry(name, shape) for name, shape in sizes.tensors().items()}
    chunks = [(name, chunk) for name, entry in entries.items() for chunk in entry.chunks]
    with path.open("wb") as file:
        _small_members(file, sizes)
        for number in range(FILES):
            data_name = f"__0_{number}.distcp"
            with _member(file, f"model_weights/{data_name}") as start:
                for name, chunk in chunks[number::FILES]:
                    offset = file.tell() - start
                    _write_zip(
                        file, "archive", _pickle(_Tensor("0", tuple(chunk.sizes))), [2 * prod(chunk.sizes)], fill
                    )
                    length = file.tell() - start - offset
                    places[MetadataIndex(name, chunk.offsets)] = _StorageInfo(data_name, offset, length)
        metadata = Metadata(state_dict_metadata=dict(entries), storage_data=places)
        for name, content in ((".metadata", pickle.dumps(metadata)), ("metadata.json", _MARK)):
            with _member(file, f"model_weights/{name}"):
                file.write(content)
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def write_classic(path: Path, sizes: Sizes, fill: Fill) -> None:
    """Write a `.nemo` with one `model_weights.ckpt`."""
    shapes: dict[str, Shape] = {}
    for name, shape in sizes.tensors().items():
        head, stacked, rest = name.partition("decoder.layers.")
        if stacked:
            shapes |= {f"{head}{stacked}{layer}.{rest}": shape[1:] for layer in range(sizes.layers)}
        else:
            shapes[name] = shape
    with path.open("wb") as file:
        _small_members(file, sizes)
        with _member(file, "model_weights.ckpt"):
            state = {name: _Tensor(str(number), shape) for number, (name, shape) in enumerate(shapes.items())}
            _write_zip(file, "model_weights", _pickle(state), [2 * prod(shape) for shape in shapes.values()], fill)
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def _small_members(file: BinaryIO, sizes: Sizes) -> None:
    trained = Archive.read(DISTRIBUTED)
    config = trained.config()
    tokenizer = config["tokenizer"]["model"].removeprefix("nemo:")
    config |= {
        "num_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "ffn_hidden_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        "num_query_groups": sizes.groups,
        "kv_channels": None,
        "max_position_embeddings": 4096,
        "encoder_seq_length": 4096,
    }
    for name, content in ((CONFIG, yaml.safe_dump(config).encode()), (tokenizer, trained.members[tokenizer])):
        with _member(file, name):
            file.write(content)


@contextmanager
def _member(file: BinaryIO, name: str) -> Iterator[int]:
    """Write a tar member whose size is known at its end; gives the place of its first byte."""
    header = file.tell()
    start = header + tarfile.BLOCKSIZE
    file.seek(start)
    yield start
    info = tarfile.TarInfo(f"./{name}")
    info.size = file.tell() - start
    end = file.tell() + -info.size % tarfile.BLOCKSIZE
    file.seek(header)
    file.write(info.tobuf(tarfile.GNU_FORMAT))
    file.seek(end)


def _entry(name: str, shape: Shape) -> TensorStorageMetadata:
    if name.startswith("model.decoder.layers."):
        halves = 2 if name.endswith("linear_fc1.weight") else 1
        size = torch.Size([1, shape[1] // halves, *shape[2:]])
        places = [(layer, half * size[1]) for layer in range(shape[0]) for half in range(halves)]
        chunks = [ChunkStorageMetadata(torch.Size([*place, *(0 for _ in shape[2:])]), size) for place in places]
    else:
        chunks = [ChunkStorageMetadata(torch.Size([0] * len(shape)), torch.Size(shape))]
    return TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), torch.Size(shape), chunks)


class _Tensor:
    """Pickled as torch pickles a tensor whose storage lies in a member of its own."""

    def __init__(self, key: str, shape: Shape) -> None:
        self.storage = _Storage(key, prod(shape))
        self.shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, self.shape, strides, False, OrderedDict())


@dataclass
class _Storage:
    key: str
    elements: int


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, _Storage):
            return ("storage", torch.BFloat16Storage, obj.key, "cpu", obj.elements)
        return None


def _pickle(value: object) -> bytes:
    packed = io.BytesIO()
    _Pickler(packed, protocol=2).dump(value)
    return packed.getvalue()


def _write_zip(file: BinaryIO, root: str, pickled: bytes, storages: list[int], fill: Fill) -> None:
    """Write what `torch.save` does: `data.pkl`, then storages at multiples of 64 bytes, all of it uncompressed."""
    base = file.tell()
    directory: list[bytes] = []

    def add(name: str, content: bytes | int) -> None:
        size = content if isinstance(content, int) else len(content)
        checksum = 0 if isinstance(content, int) else zlib.crc32(content)
        offset = file.tell() - base
        encoded = f"{root}/{name}".encode()
        # A field of the kind "FB", in which torch hides what it takes to align the values.
        padding = -(offset + 30 + len(encoded) + 4) % _ALIGNMENT
        extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)
        common = struct.pack("<HHHHHIII", 0, 0, 0, 0, 0, checksum, min(size, _LIMIT32), min(size, _LIMIT32))
        file.write(b"PK\x03\x04" + common + struct.pack("<HH", len(encoded), len(extra)) + encoded + extra)
        if isinstance(content, int):
            fill(file, content)
        else:
            file.write(content)
        large = [number for number in (size, size, offset) if number >= _LIMIT32]
        wide = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
        directory.append(
            b"PK\x01\x02" + struct.pack("<H", 0) + common
            + struct.pack("<HHHHHII", len(encoded), len(wide), 0, 0, 0, 0, min(offset, _LIMIT32)) + encoded + wide
        )  # fmt: skip

    add("data.pkl", pickled)
    for number, size in enumerate(storages):
        add(f"data/{number}", size)
    add("version", b"3\n")
    start = file.tell() - base
    file.write(b"".join(directory))
    end = file.tell() - base
    count = len(directory)
    assert count < 0xFFFF
    file.write(b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, end - start, start))
    file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1))
    file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, end - start, min(start, _LIMIT32), 0))
