"""safetensors files, written tensor by tensor: the header first, from what is known of all tensors beforehand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints.tensors import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from multimodal_builder.files import FileLog, Sink
    from multimodal_builder.streaming import Piece

SHARD_BYTES: Final = 5_000_000_000
"""Largest file; Hugging Face's custom."""
WEIGHTS_SUFFIX: Final = ".safetensors"
_ALIGNMENT: Final = 8

Named = tuple[str, TensorInfo]


def write_weights(
    folder: Path,
    tensors: list[Named],
    values: Iterable[Iterable[Piece]],
    log: FileLog,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model.safetensors`, or several of them and their index.

    Args:
        folder: Where to.
        tensors: Names, types and shapes, in the order of `values`.
        values: The bytes of each tensor, in pieces; each is put to its place before the next is asked for.
        log: Takes note of the files.
        shard_bytes: Most bytes of values in one file; a larger tensor has a file of its own.
    """
    shards = list(_shards(tensors, shard_bytes))
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    remaining = iter(values)
    for name, shard in zip(names, shards, strict=True):
        with log.create(folder / name) as sink:
            sink.write(_header(shard))
            for _ in shard:
                _write(next(remaining), sink)
    if len(shards) > 1:
        log.write(folder / "model.safetensors.index.json", _index(names, shards))


def _write(pieces: Iterable[Piece], sink: Sink) -> None:
    for size, put in pieces:
        put(sink.room(size))


def _shards(tensors: list[Named], limit: int) -> Iterator[list[Named]]:
    shard: list[Named] = []
    size = 0
    for name, info in tensors:
        if shard and size + info.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append((name, info))
        size += info.nbytes
    yield shard


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def _header(tensors: list[Named]) -> bytes:
    """Lay the tensors out one behind the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in tensors:
        end = offset + info.nbytes
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _index(names: list[str], shards: list[list[Named]]) -> dict[str, object]:
    total = sum(info.nbytes for shard in shards for _, info in shard)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor, _ in shard}
    return {"metadata": {"total_size": total}, "weight_map": places}
