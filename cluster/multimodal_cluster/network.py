"""The node's address and the kernel's settings: both as they were, once the cluster is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multimodal_cluster import hostports
from multimodal_cluster.addresses import NODE_IP
from multimodal_cluster.commands import quietly, run
from multimodal_cluster.kubeconfigs import write_json

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths

SYSCTLS: Final = Path("/proc/sys")
FORWARDING: Final = "net/ipv4/ip_forward"
# The kubelet sets all but the first one.
CHANGED: Final = (
    FORWARDING,
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def prepare(paths: Paths) -> None:
    """Give the node its address and let the machine forward between pods."""
    # Dummy links are not in every kernel; the loopback takes any address.
    run(
        "network",
        ["ip", "address", "replace", f"{NODE_IP}/32", "dev", "lo"],
        seconds=10,
        remedy="run as root, with the right to administer the network",
    )
    before = paths.fresh / "before.json"
    if not before.exists():
        values = {name: (SYSCTLS / name).read_text().strip() for name in CHANGED if (SYSCTLS / name).exists()}
        write_json(before, {"sysctls": values, "nat": hostports.tables()})
    (SYSCTLS / FORWARDING).write_text("1")


def restore(paths: Paths, cni_plugins: Path | None) -> None:
    """Remove address, rules and notes, and give the kernel its settings back."""
    before_file = paths.fresh / "before.json"
    before: dict[str, Any] = {"sysctls": {}, "nat": list(hostports.FAMILIES)}
    if before_file.exists():
        before = json.loads(before_file.read_text())
    if cni_plugins is not None:
        hostports.forget_pods(cni_plugins)
    hostports.delete_empty_tables(before["nat"])
    for family in ("ip", "ip6"):
        quietly(["nft", "delete", "table", family, "kube-proxy"])
    quietly(["ip", "address", "delete", f"{NODE_IP}/32", "dev", "lo"])
    for name, value in before["sysctls"].items():
        (SYSCTLS / name).write_text(value)
