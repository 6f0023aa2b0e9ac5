"""containerd: what runs containers and keeps their images."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from multimodal_cluster import daemons, hostports, kubeconfigs
from multimodal_cluster.commands import run
from multimodal_cluster.daemons import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

NAMESPACE: Final = "k8s.io"
READY_S: Final = 60.0
REMEDY: Final = "read containerd's log; `down --purge` and `up` start from nothing"


def containerd(paths: Paths, *, pause_image: str, cni_plugins: Path, environment: dict[str, str]) -> Daemon:
    """Describe a containerd of our own, which shares nothing with one that the system may run.

    Args:
        paths: where everything lies.
        pause_image: holds each pod's namespaces.
        cni_plugins: folder of the network plugins.
        environment: proxies and certificates for registries outside this machine.
    """
    config = _write_config(paths, pause_image, cni_plugins)
    return Daemon(
        "containerd",
        ("containerd", "--config", str(config)),
        lambda: _answers(paths),
        READY_S,
        files=(config,),
        environment=environment,
    )


def _write_config(paths: Paths, pause_image: str, cni_plugins: Path) -> Path:
    # TOML's basic strings and booleans are written as JSON writes them.
    def q(value: object) -> str:
        return json.dumps(str(value))

    text = f"""\
version = 2
root = {q(paths.containerd_root)}
state = {q(paths.containerd_state)}

[grpc]
address = {q(paths.containerd_socket)}

[plugins."io.containerd.internal.v1.opt"]
path = {q(paths.containerd_root / "opt")}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {q(pause_image)}
# Under the state folder the clean-up knows whose network namespaces they are.
netns_mounts_under_state_dir = true
# Without CAP_SYS_RESOURCE, as in CI sandboxes, no pod starts otherwise.
restrict_oom_score_adj = true
max_concurrent_downloads = 8

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {q(cni_plugins)}
conf_dir = {q(paths.configs / "cni")}

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = {q(paths.configs / "registries")}

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = {q(paths.fresh / "runc")}
"""
    file = paths.configs / "containerd.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file


def _ctr(paths: Paths, *arguments: str) -> list[str]:
    return ["ctr", "--address", str(paths.containerd_socket), "--namespace", NAMESPACE, *arguments]


def _answers(paths: Paths) -> bool:
    # The CRI plugin comes up after the socket; without it the kubelet would start in vain.
    done = subprocess.run(_ctr(paths, "plugins", "ls"), capture_output=True, text=True, timeout=READY_S, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    return done.returncode == 0 and any(line[1:2] == ["cri"] and line[-1] == "ok" for line in lines)


def images(paths: Paths) -> set[str]:
    """List the images that the node has."""
    return set(run("containerd", _ctr(paths, "images", "ls", "-q"), seconds=60, remedy=REMEDY).split())


def import_image(archive: Path, paths: Paths) -> None:
    """Import an OCI archive."""
    run("containerd", _ctr(paths, "images", "import", str(archive)), seconds=600, remedy=REMEDY)


def remove_containers(paths: Paths) -> None:
    """Forget every container; images and layers stay. The processes must have ended already."""
    listed = run("containerd", _ctr(paths, "containers", "ls", "-q"), seconds=60, remedy=REMEDY).split()
    for task in run("containerd", _ctr(paths, "tasks", "ls", "-q"), seconds=60, remedy=REMEDY).split():
        run("containerd", _ctr(paths, "tasks", "rm", "--force", task), seconds=60, remedy=REMEDY)
    if listed:
        run("containerd", _ctr(paths, "containers", "rm", *listed), seconds=300, remedy=REMEDY)
    for plugin in ("sandboxes", "containers"):
        shutil.rmtree(paths.containerd_root / "io.containerd.grpc.v1.cri" / plugin, ignore_errors=True)


def has_stale_containers(paths: Paths) -> bool:
    """Tell whether a crash left containers in containerd's records."""
    return bool(run("containerd", _ctr(paths, "containers", "ls", "-q"), seconds=60, remedy=REMEDY).split())


def start_clean(daemon: Daemon, paths: Paths, progress: Progress) -> None:
    """Start containerd with no container in its records.

    It reads them once, at its start: after a removal it must start again to have forgotten them.
    """
    daemons.ensure(daemon, paths, progress)
    if has_stale_containers(paths):
        remove_containers(paths)
        daemons.stop(daemon.name, paths)
        daemons.ensure(daemon, paths, progress)


def write_registry_hosts(paths: Paths, registry: str) -> None:
    """Tell containerd that the local registry speaks plain HTTP."""
    folder = paths.configs / "registries" / registry
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(f'server = "http://{registry}"\n')


def write_network(paths: Paths, pod_range: str) -> None:
    """Describe the pods' network: one cable to the host per pod, routed, addresses from a file.

    A bridge would need a kernel that filters bridged packets; routed cables need nothing and leave nothing behind.
    """
    plugins = [
        {
            "type": "ptp",
            "ipMasq": False,  # pods reach this machine only
            "ipam": {
                "type": "host-local",
                "dataDir": str(paths.leases),
                "ranges": [[{"subnet": pod_range}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    kubeconfigs.write_json(
        paths.configs / "cni" / "10-multimodal.conflist",
        {"cniVersion": "0.4.0", "name": hostports.NETWORK, "plugins": plugins},
    )
