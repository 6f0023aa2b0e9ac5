"""Weights in several files, and the index beside them that says which tensor is in which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multimodal_builder.checkpoints.errors import COPY_AGAIN, unreadable, unsafe
from multimodal_builder.checkpoints.tensors import row_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from multimodal_builder.checkpoints.tensors import Array, RowReader, TensorInfo, TensorSource


class ShardedSource:
    """The tensors of `*.index.json`, in the order of its files."""

    def __init__(self, at: str, index: Mapping[str, Any], open_shard: Callable[[str], TensorSource]) -> None:
        """Open every file.

        Args:
            at: What to call the index in an error.
            index: Its content.
            open_shard: Opens a file beside it.

        Raises:
            ProductError: the index is damaged, names what is no file beside it, or files and index disagree.
        """
        places = index.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise unreadable(at, "no weight_map of names and files is in it")
        self._infos: dict[str, TensorInfo] = {}
        self._source_of: dict[str, TensorSource] = {}
        for shard in sorted(set(places.values())):
            if "/" in shard or "\0" in shard or shard in {"", ".", ".."}:
                raise unsafe(at, f"{shard!r} is no file beside it")
            source = open_shard(shard)
            for name, info in source.infos().items():
                if places.get(name) != shard:
                    raise unreadable(f"{at}: {name}", f"is in {shard}, the index says {places.get(name)!r}", COPY_AGAIN)
                self._infos[name] = info
                self._source_of[name] = source
        if lost := next((name for name in places if name not in self._source_of), None):
            raise unreadable(f"{at}: {lost}", f"is not in {places[lost]}, where the index says it is", COPY_AGAIN)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, file by file."""
        return self._infos

    def read(self, name: str) -> Array:
        """Read one tensor."""
        return self._source_of[name].read(name)

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor."""
        return row_reader(self._source_of[name], name)
