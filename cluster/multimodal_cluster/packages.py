"""Programs of the distribution: installed with apt-get where they are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run
from multimodal_cluster.daemons import SYSTEM_PATH
from multimodal_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_cluster.progress import Progress

# program → Debian package
PROGRAMS: Final = {
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ctr": "containerd",
    "ip": "iproute2",
    "iptables": "iptables",
    "mount": "mount",
    "nft": "nftables",
    "openssl": "openssl",
    "runc": "runc",
    "unpigz": "pigz",  # containerd unpacks layers with it, in half the time
}
CNI_PACKAGE: Final = "containernetworking-plugins"
CNI_FOLDERS: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
CNI_PLUGINS: Final = ("ptp", "portmap", "host-local", "loopback")
APT_DEADLINE_S: Final = 900.0
REMEDY: Final = "see whether the package mirror answers; or install the packages by hand"


def missing() -> list[str]:
    """List the packages that lack, each once."""
    lacking = {package for name, package in PROGRAMS.items() if shutil.which(name, path=SYSTEM_PATH) is None}
    if find_cni_folder() is None:
        lacking.add(CNI_PACKAGE)
    return sorted(lacking)


def ensure(progress: Progress) -> None:
    """Install what is missing.

    Raises:
        ClusterError: it cannot be installed here.
    """
    lacking = missing()
    if lacking:
        install(lacking, progress)
    still = missing()
    if still:
        raise ClusterError("packages", f"still missing after installing: {' '.join(still)}", REMEDY)


def install(packages: Sequence[str], progress: Progress) -> None:
    """Install packages of the distribution.

    Raises:
        ClusterError: they cannot be installed here.
    """
    shown = " ".join(packages)
    if shutil.which("apt-get") is None or os.geteuid() != 0:  # users of Docker are often not root
        raise ClusterError("packages", f"missing: {shown}", "install them with the system's package manager")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    with progress.step(f"install {shown}"):
        for words in (["update"], ["install", "--no-install-recommends", *packages]):
            run("packages", [*apt, *words], seconds=APT_DEADLINE_S, remedy=REMEDY, environment=environment)


def cni_folder() -> Path:
    """Return the folder of the network plugins.

    Raises:
        ClusterError: there is none.
    """
    folder = find_cni_folder()
    if folder is None:
        raise ClusterError("packages", f"no folder has all of {', '.join(CNI_PLUGINS)}", f"install {CNI_PACKAGE}")
    return folder


def find_cni_folder() -> Path | None:
    """Return the folder of the network plugins, or None."""
    for folder in CNI_FOLDERS:
        if all((folder / plugin).exists() for plugin in CNI_PLUGINS):
            return folder
    return None
