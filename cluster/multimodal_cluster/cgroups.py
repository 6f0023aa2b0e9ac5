"""Control groups: the kernel's own list of what belongs to the cluster.

Daemons and pods run under one group of ours, so that after any crash the processes to end are known for certain.
Version 1 has one tree per controller, version 2 one for all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import Final

from multimodal_cluster.errors import ClusterError
from multimodal_cluster.waiting import wait_until

ROOT: Final = Path("/sys/fs/cgroup")
# Daemons are tracked in one tree of version 1; the others keep counting them for whoever started us.
TRACKING_V1: Final = "pids"
# The kubelet refuses a root that lacks one of these which the machine has; containerd counts `io` too.
CONTROLLERS_V2: Final = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
KILL_DEADLINE_S: Final = 10.0
REMOVE_DEADLINE_S: Final = 2.0


def is_v2(root: Path = ROOT) -> bool:
    """Tell whether the machine mounts the unified tree (a hybrid machine counts as version 1)."""
    return (root / "cgroup.controllers").exists()


def trees(root: Path = ROOT) -> list[Path]:
    """List the top of each tree that pods are placed in."""
    if is_v2(root):
        return [root]
    # A symbolic link (cpu → cpu,cpuacct) is a second name of a tree already in the list.
    return sorted(tree for tree in root.iterdir() if (tree / "cgroup.procs").exists() and not tree.is_symlink())


def prepare(name: str, root: Path = ROOT) -> None:
    """Make our group in every tree: the kubelet wants its root to exist.

    Raises:
        ClusterError: the machine does not let us.
    """
    try:
        for tree in trees(root):
            if is_v2(root):
                _delegate(tree)
                (tree / name).mkdir(exist_ok=True)
                _delegate(tree / name)
            else:
                (tree / name).mkdir(exist_ok=True)
                _inherit_cpus(tree / name)
    except OSError as error:
        raise ClusterError(
            "control groups", str(error), f"run as root on a machine where {root} can be written"
        ) from error


def _inherit_cpus(group: Path) -> None:
    """Give a cpuset group its parent's processors: an empty set takes no process."""
    for setting in ("cpuset.cpus", "cpuset.mems"):
        if (group / setting).exists() and not (group / setting).read_text().strip():
            (group / setting).write_text((group.parent / setting).read_text())


def _delegate(group: Path) -> None:
    """Let the children of a version 2 group use the controllers that it has."""
    offered = (group / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{controller}" for controller in CONTROLLERS_V2 if controller in offered)
    try:
        (group / "cgroup.subtree_control").write_text(wanted)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # Inside a container the top of the tree holds processes, and a group has processes or children, not both.
        _move_processes(group, group / "init")
        (group / "cgroup.subtree_control").write_text(wanted)


def _move_processes(origin: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for pid in (origin / "cgroup.procs").read_text().split():
        # A process may end meanwhile, and a kernel thread cannot be moved.
        with contextlib.suppress(OSError):
            (target / "cgroup.procs").write_text(pid)


def adopt(pid: int, name: str, root: Path = ROOT) -> None:
    """Place a daemon, and every process it will start, in our group."""
    tree = root if is_v2(root) else root / TRACKING_V1
    group = tree / name / "daemons"
    group.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ProcessLookupError):
        (group / "cgroup.procs").write_text(str(pid))


def groups(name: str, root: Path = ROOT) -> list[Path]:
    """List our groups of all trees, the deepest first."""
    found = [Path(folder) for tree in trees(root) for folder, _, _ in os.walk(tree / name, topdown=False)]
    return sorted(found, key=lambda group: len(group.parts), reverse=True)


def members(name: str, root: Path = ROOT) -> set[int]:
    """List the processes in our groups."""
    pids: set[int] = set()
    for group in groups(name, root):
        with contextlib.suppress(OSError):
            pids.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
    # The kernel writes 0 for a process that this one cannot see, and a signal to 0 would reach ourselves.
    return pids - {0}


def kill_all(name: str, root: Path = ROOT) -> None:
    """End every process in our groups.

    Raises:
        ClusterError: some do not end.
    """

    def killed() -> bool:
        for pid in members(name, root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not members(name, root)

    if not wait_until(killed, seconds=KILL_DEADLINE_S, every=0.05):
        raise ClusterError(
            "processes", f"{sorted(members(name, root))} survive SIGKILL", "they wait for a device: restart the machine"
        )


def remove(name: str, root: Path = ROOT) -> None:
    """Remove our empty groups.

    Raises:
        ClusterError: the kernel keeps one.
    """
    for group in groups(name, root):
        # A group's last process may be gone from the list a moment before the kernel lets the group go.
        if not wait_until(lambda group=group: _removed(group), seconds=REMOVE_DEADLINE_S):  # type: ignore[misc]
            raise ClusterError("control groups", f"{group} cannot be removed", "end what is in it and run again")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
