"""What a cluster leaves on the machine, and its removal: after `down`, and after a crash that killed everything."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster import cgroups, daemons, hostports, network
from multimodal_cluster.commands import quietly
from multimodal_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from multimodal_cluster.paths import Paths

MOUNTS: Final = Path("/proc/self/mountinfo")
# The kubelet links each container's log here; the name is compiled in.
LOG_LINKS: Final = Path("/var/log/containers")
# Where device plugins would meet the kubelet; the name is compiled in.
DEVICE_PLUGINS: Final = Path("/var/lib/kubelet/device-plugins")
# Where containerd mounts what it is unpacking, below its root; the name is compiled in.
CONTAINERD_SCRATCH: Final = "tmpmounts"
SHIM_SOCKETS: Final = Path("/run/containerd/s")
# Made where missing, and removed where empty; each after what is in it.
SHARED_FOLDERS: Final = (
    LOG_LINKS,
    DEVICE_PLUGINS,
    DEVICE_PLUGINS.parent,
    hostports.RESULTS,
    hostports.RESULTS.parent,
    SHIM_SOCKETS,
    SHIM_SOCKETS.parent,
)


def found(paths: Paths) -> bool:
    """Tell whether a cluster was made and not taken down; its folder may have been deleted while it ran."""
    return paths.fresh.exists() or bool(cgroups.groups(paths.cgroup))


def crashed(paths: Paths) -> bool:
    """Tell whether a cluster was made and no daemon of it runs any more."""
    return found(paths) and not alive(paths)


def alive(paths: Paths) -> list[str]:
    """List the daemons that run."""
    names = sorted(file.name for file in paths.pids.iterdir()) if paths.pids.exists() else []
    return [name for name in names if daemons.find(name, paths) is not None]


def clean(paths: Paths, cni_plugins: Path | None) -> None:
    """Remove all that one cluster left; images, pushed layers, logs and built programs stay.

    Raises:
        ClusterError: something cannot be removed.
    """
    cgroups.kill_all(paths.cgroup)
    shims = _shim_sockets(paths)
    for point in own_mounts(paths, MOUNTS.read_text().splitlines()):
        quietly(["umount", "--lazy", str(point)])
    network.restore(paths, cni_plugins)
    _remove_links(LOG_LINKS, paths.pod_logs)
    _remove_device_plugins()
    for socket in shims:
        socket.unlink(missing_ok=True)
    for folder in SHARED_FOLDERS:
        with contextlib.suppress(OSError):  # what others keep there keeps the folder
            folder.rmdir()
    cgroups.remove(paths.cgroup)
    remaining = own_mounts(paths, MOUNTS.read_text().splitlines())
    if remaining:
        # What is mounted may be anything: nothing below may be deleted while it is.
        raise ClusterError("mounts", f"still mounted: {', '.join(map(str, remaining))}", "unmount them and run again")
    if paths.fresh.exists():
        shutil.rmtree(paths.fresh)


def own_mounts(paths: Paths, mountinfo: Sequence[str]) -> list[Path]:
    """List the cluster's own mount points in the order of unmounting: a disk that someone mounted for images is none.

    Args:
        paths: where everything lies.
        mountinfo: lines as in /proc/self/mountinfo.
    """
    folders = (paths.fresh, paths.containerd_root / CONTAINERD_SCRATCH)
    return [point for folder in folders for point in mounts_below(folder, mountinfo)]


def mounts_below(folder: Path, mountinfo: Iterable[str]) -> list[Path]:
    """List the mount points below a folder, the deepest and latest first.

    Args:
        folder: only what lies below it is listed.
        mountinfo: lines as in /proc/self/mountinfo.
    """
    points = [Path(_unescape(line.split()[4])) for line in mountinfo]
    below = [(len(point.parts), order, point) for order, point in enumerate(points) if folder in point.parents]
    return [point for _, _, point in sorted(below, reverse=True)]


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes of white space and backslashes."""
    for code in ("\\040", "\\011", "\\012"):
        field = field.replace(code, chr(int(code[1:], 8)))
    return field.replace("\\134", "\\")


def _shim_sockets(paths: Paths) -> list[Path]:
    """List the sockets of our containers' supervisors: their folder is compiled in and may be shared."""
    notes = paths.containerd_state.glob("io.containerd.runtime.v2.task/*/*/address")
    sockets = [Path(note.read_text().strip().removeprefix("unix://")) for note in notes]
    return [socket for socket in sockets if socket.parent == SHIM_SOCKETS]


def _remove_device_plugins() -> None:
    """Remove the kubelet's folder for device plugins, unless one of another kubelet's plugins is in it."""
    for name in ("kubelet.sock", "kubelet_internal_checkpoint"):
        (DEVICE_PLUGINS / name).unlink(missing_ok=True)


def _remove_links(folder: Path, target: Path) -> None:
    if not folder.is_dir():
        return
    for link in folder.iterdir():
        if link.is_symlink() and target in link.readlink().parents:
            link.unlink()
