"""Processes that outlive the command that starts them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster import cgroups
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

# A log that grew beyond this is put aside at the next start.
LOG_LIMIT_BYTES: Final = 64 * 1024 * 1024
STOP_DEADLINE_S: Final = 20.0
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Daemon:
    """One part of the cluster.

    Attributes:
        name: also the name of its log and its pid file.
        command: program and arguments.
        ready: whether it does its work now.
        seconds: how long it may take to become ready.
        files: configuration it reads; a change means a restart.
        environment: added to a bare environment.
        tracked: whether it runs in the cluster's control group; one that is not must end by itself or by `stop`.
    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    seconds: float
    files: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    tracked: bool = True

    def digest(self) -> str:
        """Digest what decides how it runs."""
        seen = hashlib.sha256(repr((self.command, sorted(self.environment.items()))).encode())
        for file in self.files:
            seen.update(file.read_bytes())
        return seen.hexdigest()


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is surely ours: the kernel gives no other process the same number and the same start time.

    Attributes:
        pid: its number.
        started: clock ticks between boot and its start.
        boot: the boot it belongs to.
        digest: of the daemon it runs.
    """

    pid: int
    started: int
    boot: str
    digest: str

    def alive(self) -> bool:
        """Tell whether this very process still runs."""
        return self.boot == _boot() and _start_time(self.pid) == self.started


def log_of(name: str, paths: Paths) -> Path:
    """Name the log of a part."""
    return paths.logs / f"{name}.log"


def find(name: str, paths: Paths) -> Process | None:
    """Return the running process of a part, or None."""
    try:
        process = Process(**json.loads((paths.pids / name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return process if process.alive() else None


def ensure(daemon: Daemon, paths: Paths, progress: Progress) -> None:
    """Have the daemon run as described and ready: left alone if it does, else (re)started.

    Raises:
        ClusterError: it ended, or was not ready in time.
    """
    digest = daemon.digest()
    process = find(daemon.name, paths)
    if process is not None and process.digest != digest:
        stop(daemon.name, paths)
        process = None
    if process is not None and daemon.ready():
        return
    with progress.step(f"start {daemon.name}"):
        running = process or _start(daemon, digest, paths)
        if not wait_until(lambda: not running.alive() or daemon.ready(), seconds=daemon.seconds):
            raise ClusterError(
                daemon.name,
                f"not ready after {daemon.seconds:g}s",
                "read its log; if the machine is only slow, `up` again waits on; `down` and `up` start over",
                log_of(daemon.name, paths),
            )
        if not running.alive():
            raise ClusterError(
                daemon.name,
                "ended at once",
                "read its log: an address in use or a missing kernel feature are the usual causes",
                log_of(daemon.name, paths),
            )


def stop(name: str, paths: Paths) -> None:
    """End a part: politely, then by force; one that does not run is fine."""
    process = find(name, paths)
    if process is not None:
        _signal(process, signal.SIGTERM)
        if not wait_until(lambda: not process.alive(), seconds=STOP_DEADLINE_S, every=0.05):
            _signal(process, signal.SIGKILL)
            wait_until(lambda: not process.alive(), seconds=STOP_DEADLINE_S, every=0.05)
    (paths.pids / name).unlink(missing_ok=True)


def _signal(process: Process, number: signal.Signals) -> None:
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _start(daemon: Daemon, digest: str, paths: Paths) -> Process:
    log = log_of(daemon.name, paths)
    for folder in (paths.logs, paths.pids):
        folder.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        # What an earlier process said stays in the log, and must not pass for the last words of this one.
        output.write(f"--- {daemon.name} is started at {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} ---\n".encode())
        output.flush()
        child = subprocess.Popen(
            daemon.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
            env={"PATH": SYSTEM_PATH, "HOME": str(Path.home()), **daemon.environment},
        )
    if daemon.tracked:
        cgroups.adopt(child.pid, paths.cgroup)
    started = _start_time(child.pid)
    process = Process(child.pid, started if started is not None else -1, _boot(), digest)
    record = {"pid": process.pid, "started": process.started, "boot": process.boot, "digest": process.digest}
    (paths.pids / daemon.name).write_text(json.dumps(record))
    # Popen would warn that nobody waits for the child: init will.
    child.returncode = 0
    return process


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_time(pid: int) -> int | None:
    """Read a process's start time, in clock ticks since boot; None if it ended (a zombie has ended)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may hold anything; the rest is counted from its end.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(rest[18])
