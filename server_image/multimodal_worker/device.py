"""Which device this process computes on, how many threads it may use, and the one thread that drives the device."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import torch

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


class DeviceChoice(StrEnum):
    """Values of the environment variable `MULTIMODAL_DEVICE`."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def choose(choice: DeviceChoice, *, num_gpus: int) -> torch.device:
    """Choose the device of an engine.

    Args:
        choice: what the environment says; `auto` follows the engine.
        num_gpus: GPUs that the engine was built for.

    Raises:
        ProductError: a GPU is wanted and none can be seen.
    """
    wants_gpu = choice is DeviceChoice.CUDA or (choice is DeviceChoice.AUTO and num_gpus > 0)
    if not wants_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ProductError(
            Reason.DEVICE_MISSING,
            at="device",
            problem=f"the engine was built for {num_gpus} GPUs, and this process sees none",
            remedy="check the node's GPU driver and device plugin and spec.serving.runtimeClassName, or set numGpus: 0",
        )
    return torch.device("cuda", 0)


def cpu_threads(root: Path = _CGROUP) -> int:
    """Count the CPUs that this process may use: torch itself knows the machine's cores, but no cgroup's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return max(1, min(cores, quota)) if quota is not None else cores


def _quota(root: Path) -> int | None:
    """Give the CPU quota of the cgroup, in whole CPUs, or None where there is none."""
    for quota_file, period_file in ((root / "cpu.max", None), (root / "cpu/cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = quota_file.read_text().split()
            if period_file is not None:
                words += quota_file.with_name(period_file).read_text().split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # another cgroup version, or the word "max"
            continue
        if quota > 0:
            return -(-quota // period)
    return None


def free_memory(device: torch.device, root: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Count the bytes of memory that this process may still take, on the GPU or, by the cgroup's limit, on the CPU."""
    if device.type != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    (kilobytes,) = (line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    free = int(kilobytes) * 2**10
    try:
        limit, used = (int((root / name).read_text()) for name in ("memory.max", "memory.current"))
        (reclaimable,) = (
            int(line.split()[1])
            for line in (root / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
    except (OSError, ValueError):  # no limit, or none of this kind
        return free
    return min(free, limit - used + reclaimable)


class DeviceThread:
    """The one thread that computes, first come first served.

    Requests that run at the same time put one step each in its queue, so that they take turns.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._calls = 0

    @property
    def is_wanted(self) -> bool:
        """Whether others wait for the function that runs there; one that takes long should look, and end."""
        return self._calls > 1

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function there."""
        loop = asyncio.get_running_loop()
        self._calls += 1
        try:
            return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))
        finally:
            self._calls -= 1

    def close(self) -> None:
        """Let the running step end, drop the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)
