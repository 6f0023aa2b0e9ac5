"""Making and removing a whole cluster, with everything that can go wrong meanwhile.

It happens on an island: a second cluster in network, process and mount namespaces of its own, so that the cluster that
other tests use notices nothing, and whatever is left behind is seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from multimodal_cluster import cgroups, images
from multimodal_cluster.network import CHANGED
from multimodal_cluster.paths import Paths, paths_of

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a cluster of processes"),
]

CLUSTER = Path(__file__).parents[2] / "cluster"
# Process 1 of the island: it lets the kernel bury what ends.
INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
# Folders in which programs write under names that are compiled in: the island has its own, empty at first.
OWN_FOLDERS = ("/var/lib", "/var/log", "/run")
LOOK = rf"""
ip -o address | sed 's/ *valid_lft.*//'
ip -o link | cut -d: -f2
ip route show table all
nft list ruleset
# The machine's other mounts were copied into the island, and come and go with their owners.
cut -d' ' -f5 /proc/self/mountinfo | sed -n -E '\,^(/run|/var|'"$MULTIMODAL_CACHE"'),p'
find {" ".join(OWN_FOLDERS)} -not -name xtables.lock -not -path "/run/mount*"
cd /proc/sys && tail -n +1 {" ".join(CHANGED)}
ps -e -o comm= | sort | sed -E '/^(ps|sh|sed|sort)$/d'
"""


@dataclass(frozen=True, slots=True)
class Island:
    """A place for a cluster of its own."""

    init: int
    paths: Paths
    empty: tuple[str, ...] = ()  # what it is like before any cluster

    def run(self, *command: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.entering(*command),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=self.environment(),
        )

    def entering(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.init}", "--net", "--mount", "--pid", *command]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "MULTIMODAL_CACHE": str(self.paths.cache), "CLUSTER": "local"}

    def cluster(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, str(CLUSTER), *arguments)

    def kubectl(self, *arguments: str) -> str:
        done = self.run("kubectl", f"--kubeconfig={self.paths.kubeconfig}", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def look(self) -> tuple[str, ...]:
        """Say everything that a cluster might leave on the machine."""
        seen = self.run("sh", "-c", LOOK)
        assert seen.returncode == 0, seen.stderr
        groups = [str(group) for group in cgroups.groups(self.paths.cgroup)]
        return (*seen.stdout.splitlines(), *groups)


@pytest.fixture(name="island", scope="module")
def _island(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Island]:
    paths = Paths(tmp_path_factory.mktemp("i") / "c")
    paths.cache.mkdir()
    (paths.cache / "bin").symlink_to(paths_of(os.environ).binaries)
    command = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        sys.executable,
        "-c",
        INIT,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline() == "ready\n"
        (init,) = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
        island = Island(int(init), paths)
        furnish = [f"mount -t tmpfs tmpfs {folder}" for folder in OWN_FOLDERS]
        made = island.run("sh", "-c", " && ".join(["ip link set lo up", *furnish]))
        assert made.returncode == 0, made.stderr
        yield dataclasses.replace(island, empty=island.look())
        island.cluster("down", "--purge")
        unshare.kill()


@pytest.fixture(name="inhabited")
def _inhabited(island: Island) -> Island:
    """Give an island whose cluster runs a pod with a volume, a port of the host, and a Service."""
    up = island.cluster("up")
    assert up.returncode == 0, up.stderr
    manifest = island.paths.cache / "pod.json"
    manifest.write_text(json.dumps(INHABITANT | {"items": [*INHABITANT["items"], pod(island.paths)]}))
    island.kubectl("apply", "-f", str(manifest))
    island.kubectl("wait", "--for=condition=Ready", "--timeout=90s", "pod/inhabitant")
    rules = island.run("nft", "list", "ruleset").stdout
    assert "dport 8080" in rules
    return island


PUSH = f"""
import pathlib, sys
sys.path += {[str(CLUSTER), str(CLUSTER.parent / "tests")]}
from multimodal_cluster.images import compose
from support.platform import push
push(compose(pathlib.Path("/bin/true"), "0:0"), "tests/true", "latest")
"""
INHABITANT = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "inhabitant"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "inhabitant"},
            "spec": {"selector": {"app": "inhabitant"}, "ports": [{"port": 80}]},
        },
    ],
}


def pod(paths: Paths) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "inhabitant", "labels": {"app": "inhabitant"}},
        "spec": {
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "inhabitant"}}],
            "containers": [
                {
                    "name": "pause",
                    "image": images.PAUSE.name(paths),
                    "imagePullPolicy": "Never",
                    "ports": [{"containerPort": 80, "hostPort": 8080}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
        },
    }


def test_what_is_in_the_way_is_named(island: Island) -> None:
    # It accepts nobody: the wait for the registry may knock before the registry has found its port taken.
    occupier = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 5000)); print('here', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        island.entering(sys.executable, "-c", occupier), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        try:
            up = island.cluster("up")
        finally:
            process.kill()
    assert up.returncode == 1
    assert "error: registry: ended at once" in up.stderr
    assert f"log: {island.paths.logs / 'registry.log'}" in up.stderr
    assert "bind: address already in use" in up.stderr


def test_two_at_once_make_one_cluster(island: Island) -> None:
    command = island.entering(sys.executable, str(CLUSTER), "up")
    both = [
        subprocess.Popen(command, env=island.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("start kube-apiserver" in each for each in said) == 1
    assert island.cluster("status").returncode == 0


def test_after_everything_was_killed_at_once_it_comes_up_again(inhabited: Island) -> None:
    before = inhabited.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.uid}")
    inhabited.run("sh", "-c", "kill -9 -1")  # every process of the island but its first
    assert inhabited.cluster("status").returncode == 1
    up = inhabited.cluster("up")
    assert up.returncode == 0, up.stderr
    assert "clean up after" in up.stdout
    assert inhabited.cluster("status").returncode == 0
    after = inhabited.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.uid}")
    assert after != before
    assert "cluster.local" not in up.stdout  # the images were kept


def test_parts_that_were_killed_are_started_again_and_pods_run_on(inhabited: Island) -> None:
    killed = {"containerd", "etcd", "kube-scheduler"}
    records = [json.loads((inhabited.paths.pids / part).read_text()) for part in killed]
    inhabited.run("kill", "-9", *(str(record["pid"]) for record in records))
    up = inhabited.cluster("up")
    assert up.returncode == 0, up.stderr
    started = {line.split(" start ")[1].split(":")[0] for line in up.stdout.splitlines() if " start " in line}
    assert killed <= started
    status = json.loads(inhabited.kubectl("get", "pod", "inhabitant", "-o", "json"))["status"]
    assert (status["phase"], status["containerStatuses"][0]["restartCount"]) == ("Running", 0)


def test_down_leaves_nothing_but_what_should_not_be_made_twice(inhabited: Island) -> None:
    pushed = inhabited.run(sys.executable, "-c", PUSH)
    assert pushed.returncode == 0, pushed.stderr
    down = inhabited.cluster("down")
    assert down.returncode == 0, down.stderr
    assert inhabited.look() == inhabited.empty
    kept = {entry.name for entry in inhabited.paths.state.iterdir()}
    assert kept == {"containerd", "lock", "logs", "registry"}
    again = inhabited.cluster("down")
    assert again.returncode == 0, again.stderr


def test_a_purge_removes_what_down_keeps(island: Island) -> None:
    assert island.cluster("down", "--purge").returncode == 0
    assert {entry.name for entry in island.paths.state.iterdir()} == {"lock"}
    digest = hashlib.sha256(os.fsencode(island.paths.state)).hexdigest()[:8]
    assert island.paths.cgroup.endswith(digest)
