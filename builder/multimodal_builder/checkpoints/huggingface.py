"""Hugging Face folders: their configuration files and their weights."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import not_found, unreadable, unsafe
from multimodal_builder.checkpoints.hub import is_repository
from multimodal_builder.checkpoints.shards import ShardedSource
from multimodal_builder.checkpoints.tensors import CARRIERS, Array, RowReader, TensorInfo, raw
from multimodal_builder.checkpoints.window import ByteFile, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.checkpoints.tensors import TensorSource

CONFIG_NAME: Final = "config.json"
PREPROCESSOR_NAME: Final = "preprocessor_config.json"
SAFETENSORS: Final = "model.safetensors"
PICKLED: Final = "pytorch_model.bin"
INDEX: Final = ".index.json"
"""Behind either name, where the weights are in several files."""

_JSON_LIMIT: Final = 4 * 2**20
_HEADER_LIMIT: Final = 100_000_000
"""Bytes; safetensors' own limit."""


class HuggingFaceFolder:
    """One model's folder, found on the volume beside the checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = ExitStack()

    def json(self, name: str) -> dict[str, Any]:
        """Read a configuration file.

        Raises:
            ProductError: it is absent or no JSON object.
        """
        window = self.file(name)
        try:
            document = json.loads(window.read(_JSON_LIMIT))
        except (ValueError, RecursionError) as error:
            raise unreadable(window.at, f"not JSON: {error}") from error
        if not isinstance(document, dict):
            raise config_error(window.at, "holds no keys", "use the file that belongs to the model")
        return document

    def tensors(self) -> TensorSource:
        """Open the weights, in one file or in several.

        Raises:
            ProductError: there are none, or they are damaged.
        """
        opening: tuple[tuple[str, Callable[[Window], TensorSource]], ...] = (
            (SAFETENSORS, SafetensorsSource),
            (PICKLED, CkptSource),
        )
        for name, source in opening:
            if (self.path / name).is_file():
                return source(self.file(name))
            if (self.path / f"{name}{INDEX}").is_file():
                return self._sharded(f"{name}{INDEX}", source)
        raise not_found(
            str(self.path), f"neither {SAFETENSORS} nor {PICKLED} is in this folder", "copy the whole model there"
        )

    def _sharded(self, index: str, source: Callable[[Window], TensorSource]) -> TensorSource:
        return ShardedSource(f"{self.path.name}/{index}", self.json(index), lambda shard: source(self.file(shard)))

    def file(self, name: str) -> Window:
        """Open a file.

        Raises:
            ProductError: it is absent.
        """
        at = f"{self.path.name}/{name}"
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise not_found(at, f"it cannot be read: {error.strerror}", "copy the whole model folder there") from error
        return self._open.enter_context(ByteFile(descriptor, at)).window(at)

    def close(self) -> None:
        """Close all files."""
        self._open.close()


class SafetensorsSource:
    """One safetensors file: a JSON header with offsets, then the values."""

    def __init__(self, window: Window) -> None:
        """Read the header.

        Raises:
            ProductError: it is damaged or places values outside the file.
        """
        self.at = window.at
        length = int.from_bytes(window.part(0, 8, self.at).read(), "little")
        if length > _HEADER_LIMIT:
            raise unsafe(self.at, f"a header of {length} bytes")
        try:
            header = json.loads(window.part(8, length, self.at).read())
            self._tensors = {
                name: self._entry(window, 8 + length, name, entry)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise unreadable(self.at, f"the header is damaged: {type(error).__name__}: {str(error)[:200]}") from error

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors in the order of the file."""
        ordered = sorted(self._tensors.items(), key=lambda item: item[1][1].start)
        return {name: info for name, (info, _) in ordered}

    def read(self, name: str) -> Array:
        """Read one tensor."""
        info, window = self._tensors[name]
        array = empty(info.shape, CARRIERS[info.dtype])
        window.read_into(raw(array))
        return array

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor."""
        info, window = self._tensors[name]
        row = TensorInfo(info.dtype, info.shape[1:]).nbytes
        return lambda rows, first: window.part(first * row, rows.nbytes, window.at).read_into(raw(rows))

    def _entry(self, window: Window, base: int, name: str, entry: dict[str, Any]) -> tuple[TensorInfo, Window]:
        at = f"{self.at}: {name}"
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if entry["dtype"] not in CARRIERS or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise unreadable(at, f"type {entry['dtype']} and shape {shape} are not those of weights")
        info = TensorInfo(entry["dtype"], shape)
        if start < 0 or end - start != info.nbytes:
            raise unreadable(at, f"bytes {start} to {end} for {info.dtype} values of shape {shape}")
        return info, window.part(base + start, info.nbytes, at)


def candidates(named: str, checkpoint: Path) -> tuple[Path, ...]:
    """List the places that a configuration value may mean, on the volume that the checkpoint lies on.

    The path (an absolute one as it is, a relative one from the checkpoint's folder), then its last part in the
    checkpoint's folder: archives carry hub names, and paths of the machine that trained them.
    """
    beside = checkpoint.parent
    return beside / named, beside / Path(named).name  # an absolute path stays what it is


def find_folder(
    named: str, checkpoint: Path, hub: Hub | None, *, key: str, holding: tuple[str, ...] = (CONFIG_NAME,)
) -> HuggingFaceFolder:
    """Find the folder that a configuration value means: on the volume that the checkpoint lies on, else in the Hub.

    Args:
        named: The value.
        checkpoint: Whose configuration it is from.
        hub: Where else to look; None: nowhere.
        key: Of the value, for an error.
        holding: Files that the folder is known by; one is enough.

    Raises:
        ProductError: none of these is such a folder, or the Hub does not give it.
    """
    beside = checkpoint.parent
    for candidate in candidates(named, checkpoint):
        if any((candidate / name).is_file() for name in holding):
            return HuggingFaceFolder(candidate)
    if hub is not None and is_repository(named):
        return HuggingFaceFolder(hub.fetch(named, at=f"{checkpoint.name}: {key}"))
    raise not_found(
        f"{checkpoint.name}: {key}",
        f"{named!r} is no folder with a {' or '.join(holding)} on the volume",
        f"put that folder beside the archive, as {Path(named).name!r} in {str(beside)!r}",
    )
