"""What a conversion costs beside a copy of the same bytes: `python benchmarks/conversion.py`.

A NeVA checkpoint of the wanted size is generated, then copied and converted in turns, so that a busy disk or machine
slows both. A copy is `cp` and an fsync, as a conversion puts everything on the disk before it ends. The first copy is
the warm-up. Time, memory and bytes are the kernel's own counts for each process. Everything is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from support.archives import CLIP  # noqa: E402 -- the path above makes it importable
from support.large_checkpoint import Noise, Sizes, write_classic, write_distributed  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

WRITERS: Final = {"torch_dist": write_distributed, "ckpt": write_classic}
GOAL: Final = 0.7
"""Least throughput, as a part of the copy's."""
MEMORY: Final = 1.5 * 2**30
"""Most resident bytes, beside the largest tensor twice."""
TRAFFIC: Final = 1.02
"""Most bytes read or written, as a multiple of what there is: imports and headers are counted too."""
ROOM: Final = 2**30
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    cpu: float
    """Seconds of all its cores."""
    peak: int
    """Resident bytes."""
    read: int
    """Bytes that it asked the kernel for."""
    written: int


def main() -> int:
    """Measure and print; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the checkpoint")
    parser.add_argument("--form", choices=WRITERS, default="torch_dist")
    parser.add_argument("--rounds", type=int, default=2, help="copies and conversions that count")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    arguments = parser.parse_args()
    sizes = Sizes.of_bytes(int(arguments.gigabytes * 1e9))
    free = shutil.disk_usage(arguments.folder).free
    if free < 2 * sizes.nbytes + ROOM:
        print(f"{arguments.folder}: {free / 1e9:.1f} GB are free, {2 * sizes.nbytes / 1e9 + 1:.1f} are needed")
        return 1
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="conversion-") as folder:
        return _measure(Path(folder), sizes, arguments.form, arguments.rounds)


def _measure(folder: Path, sizes: Sizes, form: str, rounds: int) -> int:
    checkpoint = folder / "model.nemo"
    shutil.copytree(CLIP, folder / "clip")
    WRITERS[form](checkpoint, sizes, Noise())
    size = checkpoint.stat().st_size
    print(f"{size / 1e9:.1f} GB as {form}: {sizes.layers} layers, largest tensor {sizes.largest / 2**20:.0f} MiB")
    _copy(checkpoint, folder)
    copies, conversions, written = [], [], 0
    for number in range(1, rounds + 1):
        copies.append(_copy(checkpoint, folder))
        out = folder / "out"
        conversions.append(
            _run([sys.executable, "-m", "multimodal_builder.main", "convert", str(checkpoint), str(out)])
        )
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
        print(f"round {number}: cp {copies[-1].seconds:.1f} s, convert {conversions[-1].seconds:.1f} s", flush=True)
    return _report(copies, conversions, sizes, size, written)


def _copy(checkpoint: Path, folder: Path) -> Run:
    copy = folder / "copy"
    # Copying on write would copy nothing, and holes would not be written.
    run = _run(["sh", "-c", 'cp --reflink=never --sparse=never "$0" "$1" && sync "$1"', str(checkpoint), str(copy)])
    copy.unlink()
    return run


def _run(command: Sequence[str]) -> Run:
    """Run a process, and read the kernel's counts of it until it has ended and before they are gone."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    counts: dict[str, int] = {}
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        counts |= _counts(process.pid)
        time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - start
    counts |= _counts(process.pid)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return Run(seconds, used.ru_utime + used.ru_stime, counts["VmHWM"] * 1024, counts["rchar"], counts["wchar"])


def _counts(pid: int) -> dict[str, int]:
    """Read what is there; a process that has ended has no memory any more."""
    lines = [line for name in ("status", "io") for line in Path(f"/proc/{pid}/{name}").read_text().splitlines()]
    named = (line.split() for line in lines if line.startswith(("VmHWM:", "rchar:", "wchar:")))
    return {name.rstrip(":"): int(value) for name, value, *_ in named}


def _report(copies: list[Run], conversions: list[Run], sizes: Sizes, size: int, written: int) -> int:
    copy = statistics.median(run.seconds for run in copies)
    conversion = statistics.median(run.seconds for run in conversions)
    peak = max(run.peak for run in conversions)
    allowed = MEMORY + 2 * sizes.largest
    read, wrote = max(run.read for run in conversions) / size, max(run.written for run in conversions) / written
    checks = (
        ("throughput, of cp's", copy / conversion, GOAL, copy / conversion >= GOAL),
        ("peak memory, GiB", peak / 2**30, allowed / 2**30, peak <= allowed),
        ("bytes read, of the checkpoint's", read, TRAFFIC, read <= TRAFFIC),
        ("bytes written, of the model's", wrote, TRAFFIC, wrote <= TRAFFIC),
    )
    print(f"\n{'':<14}{'seconds':>9}{'MB/s':>7}{'CPU s':>7}")
    for name, runs, seconds in (("cp and fsync", copies, copy), ("convert", conversions, conversion)):
        cpu = statistics.median(run.cpu for run in runs)
        print(f"{name:<14}{seconds:9.1f}{size / seconds / 1e6:7.0f}{cpu:7.1f}")
    print()
    for name, value, goal, good in checks:
        print(f"{name:<32} {value:8.3f}   goal {goal:.3f}   {'good' if good else 'MISSED'}")
    return 0 if all(good for *_, good in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
