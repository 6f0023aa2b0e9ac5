"""Rules for pods that have a port of the host, and the notes from which they can be removed.

The network plugin removes both when a pod ends in order. After a crash there is nobody to ask for it but us.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multimodal_cluster.commands import quietly

if TYPE_CHECKING:
    from collections.abc import Sequence

# Where the CNI library notes each attached pod; the name is compiled in.
RESULTS: Final = Path("/var/lib/cni/results")
NETWORK: Final = "multimodal"
CHAINS: Final = ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK")
POD_CHAIN: Final = "CNI-DN-"
# nftables' name of an address family → the command that speaks of it in iptables' words
FAMILIES: Final = {"ip": "iptables", "ip6": "ip6tables"}
HOOKS: Final = ("PREROUTING", "OUTPUT", "POSTROUTING")


def tables() -> list[str]:
    """List the families for which the machine has the nftables table into which iptables translates the rules."""
    return [family for family in FAMILIES if quietly(["nft", "list", "table", family, "nat"])]


def delete_empty_tables(kept: Sequence[str]) -> None:
    """Delete those tables in which nothing is but empty hooks.

    Args:
        kept: families whose table was there before us.
    """
    for family in tables():
        rules = _rules(family)
        if family not in kept and not any(rule.startswith("-A") or rule.endswith("- [0:0]") for rule in rules):
            quietly(["nft", "delete", "table", family, "nat"])


def forget_pods(plugins: Path) -> None:
    """Remove the rules of pods with host ports and the notes about all pods; their cables went with them."""
    for note in sorted(RESULTS.glob(f"{NETWORK}-*-eth0")):
        with contextlib.suppress(ValueError):  # a crash may have cut it short
            attached = json.loads(note.read_text())
            if attached.get("capabilityArgs", {}).get("portMappings"):
                _release(attached, plugins)
        note.unlink()
        # Containers have random names, so the note about the same container's loopback is ours too.
        container = note.name.removeprefix(f"{NETWORK}-").removesuffix("-eth0")
        (RESULTS / f"cni-loopback-{container}-lo").unlink(missing_ok=True)
    for family in FAMILIES:
        if no_pod_is_left(_rules(family)):
            _delete_chains(family)


def no_pod_is_left(rules: Sequence[str]) -> bool:
    """Tell whether the chains for host ports stand there without a pod: another tool's pods may use them too.

    Args:
        rules: lines as iptables-save prints them.
    """
    return any(f":{CHAINS[0]} " in rule for rule in rules) and not any(f":{POD_CHAIN}" in rule for rule in rules)


def jumps(rules: Sequence[str], hook: str) -> list[int]:
    """Return the numbers, counted from 1, of a hook's rules that lead to the chains, the last first.

    By number, since iptables-save quotes comments in a way that no other command reads.
    """
    own = [rule.split() for rule in rules if rule.startswith(f"-A {hook} ")]
    return [number for number, words in reversed(list(enumerate(own, start=1))) if words[-1] in CHAINS]


def _delete_chains(family: str) -> None:
    command = [FAMILIES[family], "-w", "-t", "nat"]
    for hook in HOOKS:
        for number in jumps(_rules(family), hook):
            quietly([*command, "-D", hook, str(number)])
    for action in ("-F", "-X"):
        for chain in CHAINS:
            quietly([*command, action, chain])


def _rules(family: str) -> list[str]:
    command = [f"{FAMILIES[family]}-save", "-t", "nat"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def _release(attached: dict[str, Any], plugins: Path) -> None:
    """Ask the plugin to remove one pod's rules, as the CNI specification words it."""
    config = {
        "cniVersion": "0.4.0",
        "name": NETWORK,
        "type": "portmap",
        "runtimeConfig": attached["capabilityArgs"],
        "prevResult": attached["result"],
    }
    words = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": attached["containerId"],
        "CNI_IFNAME": attached["ifName"],
        "CNI_NETNS": "",
        "CNI_PATH": str(plugins),
    }
    subprocess.run(
        [str(plugins / "portmap")],
        input=json.dumps(config).encode(),
        env={**os.environ, **words},
        capture_output=True,
        timeout=30,
        check=False,
    )
