"""Media encoding: batched across requests, cached by content."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_worker.backends.base import ItemEncoder
    from multimodal_worker.device import DeviceThread

CACHE_BYTES: Final = 2**28
"""Rows kept, on the device: 57 pictures of 576 rows at width 4096 in bfloat16."""

Key = bytes
"""Digest of a frame or a sound: equal content is encoded once, whoever sends it; its position says nothing."""


class MediaCache:
    """Rows of the frames and sounds used last, bounded in bytes."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[Key, torch.Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0
        self.bytes = 0

    def get(self, key: Key) -> torch.Tensor | None:
        """Look an item up, and count it."""
        rows = self._rows.get(key)
        if rows is None:
            self.misses += 1
            return None
        self._rows.move_to_end(key)
        self.hits += 1
        return rows

    def put(self, key: Key, rows: torch.Tensor) -> None:
        """Keep an item's rows, and drop the oldest ones beyond the bound."""
        if rows.nbytes > self._max_bytes or key in self._rows:
            return
        self._rows[key] = rows
        self.bytes += rows.nbytes
        while self.bytes > self._max_bytes:
            _, dropped = self._rows.popitem(last=False)
            self.bytes -= dropped.nbytes


class BatchedEncoder:
    """Takes frames and sounds from all requests and encodes up to `max_batch` of them at once.

    A batch is whatever waits when the device is free: no request waits for others to come.
    """

    def __init__(self, encoder: ItemEncoder, thread: DeviceThread, *, max_batch: int, cache: MediaCache) -> None:
        """Take an encoder.

        Args:
            encoder: the loaded tower, or speech encoder.
            thread: where it runs.
            max_batch: items that it takes at once.
            cache: rows known already.
        """
        self._encoder = encoder
        self._thread = thread
        self._max_batch = max_batch
        self._waiting: OrderedDict[Key, torch.Tensor] = OrderedDict()
        self._results: dict[Key, asyncio.Future[torch.Tensor]] = {}
        self._work: asyncio.Task[None] | None = None
        self.cache = cache

    async def encode(self, medium: torch.Tensor) -> torch.Tensor:
        """Encode one medium.

        Args:
            medium: [frames, 3, height, width] of a picture or a video, [1, frames, bands] of a sound; float32, on the
                CPU.

        Returns:
            [frames, rows, hidden], on the device; one frame of a sound.
        """
        return torch.stack(await asyncio.gather(*(self._encode(item) for item in medium)))

    async def _encode(self, item: torch.Tensor) -> torch.Tensor:
        key = hashlib.sha256(item.numpy().data).digest()
        known = self.cache.get(key)
        if known is not None:
            return known
        result = self._results.get(key)
        if result is None:
            result = self._results[key] = asyncio.get_running_loop().create_future()
            self._waiting[key] = item
            if self._work is None or self._work.done():
                self._work = asyncio.create_task(self._drain())
        return await asyncio.shield(result)  # one that goes away leaves the result to the others

    async def _drain(self) -> None:
        """Encode until nothing waits."""
        while self._waiting:
            shape = next(iter(self._waiting.values())).shape
            any_length = self._encoder.takes_any_length
            fitting = [key for key, item in self._waiting.items() if any_length or item.shape == shape]
            keys = fitting[: self._max_batch]
            await self._encode_batch(keys, [self._waiting.pop(key) for key in keys])

    async def _encode_batch(self, keys: Sequence[Key], items: Sequence[torch.Tensor]) -> None:
        try:
            encoded = await self._thread.run(self._encoder.encode_together, items)
            if len(keys) > 1:
                encoded = [rows.clone() for rows in encoded]  # a view would keep the whole batch in memory
        except Exception as error:  # noqa: BLE001 -- whatever it is, those who wait must hear it
            for key in keys:
                result = self._results.pop(key)
                result.set_exception(error)
                result.exception()  # nobody may be waiting any more
            return
        for key, rows in zip(keys, encoded, strict=True):
            self.cache.put(key, rows)
            self._results.pop(key).set_result(rows)
