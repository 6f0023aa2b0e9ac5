"""The node's address, the kernel's settings, and what pods' networks leave behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
# Where the CNI library notes each attached pod; the name is compiled in.
CNI_RESULTS: Final = Path("/var/lib/cni/results")
CNI_NETWORK: Final = "multimodal"
PORT_CHAINS: Final = ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK")


def prepare(paths: Paths) -> None:
    """Give the node its address and let the machine forward between pods."""
    # Dummy links are not in every kernel; the loopback takes any address.
    run(
        "network",
        ["ip", "address", "replace", f"{NODE_IP}/32", "dev", "lo"],
        seconds=10,
        remedy="run as root, with the right to administer the network",
    )
    saved = paths.fresh / "sysctls.json"
    if not saved.exists():
        values = {name: (SYSCTLS / name).read_text().strip() for name in CHANGED if (SYSCTLS / name).exists()}
        write_json(saved, values)
    (SYSCTLS / FORWARDING).write_text("1")


def restore(paths: Paths, cni_plugins: Path | None) -> None:
    """Remove address, rules and notes, and give the kernel its settings back."""
    if cni_plugins is not None:
        _forget_pods(cni_plugins)
    for family in ("ip", "ip6"):
        quietly(["nft", "delete", "table", family, "kube-proxy"])
    quietly(["ip", "address", "delete", f"{NODE_IP}/32", "dev", "lo"])
    saved = paths.fresh / "sysctls.json"
    if saved.exists():
        for name, value in json.loads(saved.read_text()).items():
            (SYSCTLS / name).write_text(value)


def _forget_pods(cni_plugins: Path) -> None:
    """Remove the rules of pods with host ports and the notes about all pods; their cables went with them."""
    notes = sorted(CNI_RESULTS.glob(f"{CNI_NETWORK}-*"))
    for note in notes:
        attached = json.loads(note.read_text())
        if attached.get("capabilityArgs", {}).get("portMappings"):
            _release_ports(attached, cni_plugins)
        # Containers have random names, so the note about the same container's loopback is ours too.
        for name in (note.name, f"cni-loopback-{attached['containerId']}-lo"):
            (CNI_RESULTS / name).unlink(missing_ok=True)
    if _no_ports_left():
        for hook in ("PREROUTING", "OUTPUT", "POSTROUTING"):
            _drop_jumps(hook)
        for action in ("-F", "-X"):
            for chain in PORT_CHAINS:
                quietly(["iptables", "-w", "-t", "nat", action, chain])


def _release_ports(attached: dict[str, object], cni_plugins: Path) -> None:
    config = {
        "cniVersion": "0.4.0",
        "name": CNI_NETWORK,
        "type": "portmap",
        "runtimeConfig": attached["capabilityArgs"],
        "prevResult": attached["result"],
    }
    subprocess.run(
        [str(cni_plugins / "portmap")],
        input=json.dumps(config).encode(),
        env={
            **os.environ,
            "CNI_COMMAND": "DEL",
            "CNI_CONTAINERID": str(attached["containerId"]),
            "CNI_IFNAME": str(attached["ifName"]),
            "CNI_NETNS": "",
            "CNI_PATH": str(cni_plugins),
        },
        capture_output=True,
        timeout=30,
        check=False,
    )


def _nat_rules() -> list[str]:
    try:
        done = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def _no_ports_left() -> bool:
    """Tell whether host-port chains stand there without a pod: another tool's pods may use them too."""
    rules = _nat_rules()
    return any(f":{PORT_CHAINS[0]} " in rule for rule in rules) and not any(":CNI-DN-" in rule for rule in rules)


def _drop_jumps(hook: str) -> None:
    for rule in _nat_rules():
        words = rule.split()
        if words[:2] == ["-A", hook] and words[-1] in PORT_CHAINS:
            # iptables-save quotes its comments; the rule's number needs no quoting.
            quietly(["iptables", "-w", "-t", "nat", "-D", hook, _position(hook, rule)])


def _position(hook: str, rule: str) -> str:
    own = [line for line in _nat_rules() if line.startswith(f"-A {hook} ")]
    return str(own.index(rule) + 1)
