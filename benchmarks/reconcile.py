"""The operator beside a bare kopf handler: idle cost, writes when nothing changes, edit to first write.

Both run outside the cluster, one after the other, on the same resources and the same API server. Times and writes come
from the API server's audit log, which neither of them can colour: an edit's time is from the end of the edit's request
to the arrival of the first write that names the same resource. The bare handler writes one status field per resource in
its first pass; the operator makes a claim, a Service and a ServiceAccount.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

import yaml
from kubernetes import client, config

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
GROUP, VERSION, PLURAL = "multimodal.dev", "v1alpha1", "multimodaldeployments"
AGENT: Final = "benchmark/1"
WRITES: Final = frozenset({"create", "update", "patch", "delete"})
QUIET_SECONDS: Final = 5.0
DEADLINE_SECONDS: Final = 300.0
TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen of one program."""

    start_seconds: float
    memory_mib: float
    cpu_percent: float
    idle_writes: int
    edit_p50_ms: float
    edit_p99_ms: float


class AuditLog:
    """The API server's own record of one namespace's requests."""

    def __init__(self, path: Path, namespace: str) -> None:
        self._path = path
        self._namespace = namespace

    def mark(self) -> int:
        """Give the present end."""
        return self._path.stat().st_size

    def since(self, mark: int) -> Iterator[dict[str, Any]]:
        """Give finished write requests behind a mark."""
        with self._path.open("rb") as file:
            file.seek(mark)
            for line in file:
                if not line.endswith(b"\n") or self._namespace.encode() not in line:
                    continue
                entry = json.loads(line)
                about = entry.get("objectRef", {})
                if (
                    entry["stage"] == "ResponseComplete"
                    and entry["verb"] in WRITES
                    and about.get("namespace") == self._namespace
                    and not entry["user"]["username"].startswith(("system:serviceaccount:kube-system", "system:kube"))
                ):
                    yield entry


def main() -> int:
    """Measure and print."""
    arguments = _arguments()
    config.load_kube_config()
    api = client.ApiClient()
    api.user_agent = AGENT
    with _namespace(api) as namespace:
        audit = AuditLog(Path(os.environ["MULTIMODAL_AUDIT_LOG"]), namespace)
        _create(api, namespace, arguments.resources)
        bare = [sys.executable, "-m", "kopf", "run", "--standalone", "-q", "-n", namespace]
        ours = [sys.executable, "-m", "multimodal_operator.main", "--namespace", namespace, "--health-port", "18080"]
        ours += ["--builder-image", "none", "--server-image", "none"]
        peer = _measure([*bare, str(Path(__file__).with_name("bare_handler.py"))], api, audit, namespace, arguments)
        operator = _measure(ours, api, audit, namespace, arguments)
    _print(operator, peer, arguments)
    return 0


def _measure(
    command: list[str], api: client.ApiClient, audit: AuditLog, namespace: str, arguments: argparse.Namespace
) -> Figures:
    begin, mark = time.monotonic(), audit.mark()
    program = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        seconds = _until_quiet(audit, mark) - begin
        mark, used, since = audit.mark(), _cpu_seconds(program.pid), time.monotonic()
        time.sleep(arguments.idle)
        cpu = (_cpu_seconds(program.pid) - used) / (time.monotonic() - since)
        idle_writes = sum(1 for _ in audit.since(mark))
        memory = _memory_mib(program.pid)
        delays = _edit(api, audit, namespace, arguments)
    finally:
        program.terminate()
        program.wait(timeout=30)
    return Figures(
        start_seconds=seconds,
        memory_mib=memory,
        cpu_percent=100 * cpu,
        idle_writes=idle_writes,
        edit_p50_ms=1000 * median(delays),
        edit_p99_ms=1000 * quantiles(delays, n=100)[98],
    )


def _until_quiet(audit: AuditLog, mark: int) -> float:
    """Wait until nothing was written for a while; give the time of the last write."""
    deadline, last, seen = time.monotonic() + DEADLINE_SECONDS, time.monotonic(), 0
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (now := sum(1 for _ in audit.since(mark))) != seen:
            last, seen = time.monotonic(), now
        elif seen and time.monotonic() > last + QUIET_SECONDS:
            return last
    raise SystemExit(f"still writing after {DEADLINE_SECONDS:.0f} s, or never began")


def _edit(api: client.ApiClient, audit: AuditLog, namespace: str, arguments: argparse.Namespace) -> list[float]:
    """Edit resources one after the other; give the seconds from each edit to the first write that it caused."""
    custom, mark = client.CustomObjectsApi(api), audit.mark()
    names = [f"r{index:04}" for index in range(arguments.resources)]
    edited = [names[index * 7 % len(names)] for index in range(arguments.edits)]
    for index, name in enumerate(edited):
        patch = {"spec": {"triton": {"httpPort": 10_000 + (time.time_ns() // 1000 + index) % 40_000}}}
        custom.patch_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name, patch)
        time.sleep(arguments.pause)
    time.sleep(QUIET_SECONDS)
    ends: dict[str, datetime] = {}
    delays = []
    for entry in sorted(audit.since(mark), key=lambda entry: str(entry["requestReceivedTimestamp"])):
        name = entry["objectRef"].get("name", "")
        if entry["userAgent"] == AGENT:
            ends[name] = _time(entry["stageTimestamp"])
        elif name in ends:
            delays.append((_time(entry["requestReceivedTimestamp"]) - ends.pop(name)).total_seconds())
    if len(delays) < arguments.edits * 0.99:
        raise SystemExit(f"{arguments.edits} edits caused writes for {len(delays)} resources only")
    return delays


@contextlib.contextmanager
def _namespace(api: client.ApiClient) -> Iterator[str]:
    core, name = client.CoreV1Api(api), f"benchmark-{uuid.uuid4().hex[:8]}"
    definition = yaml.safe_load((ROOT / "crds" / f"{PLURAL}.{GROUP}.yaml").read_text())
    with contextlib.suppress(client.ApiException):  # it may be installed already
        client.ApiextensionsV1Api(api).create_custom_resource_definition(definition)
        time.sleep(2)
    core.create_namespace({"metadata": {"name": name}})
    try:
        yield name
    finally:
        custom = client.CustomObjectsApi(api)
        for resource in custom.list_namespaced_custom_object(GROUP, VERSION, name, PLURAL)["items"]:
            patch = {"metadata": {"finalizers": None}}  # no operator is left to take them away
            custom.patch_namespaced_custom_object(GROUP, VERSION, name, PLURAL, resource["metadata"]["name"], patch)
        core.delete_namespace(name)


def _create(api: client.ApiClient, namespace: str, count: int) -> None:
    custom = client.CustomObjectsApi(api)
    checkpoint = {"pvc": {"claimName": "checkpoints", "path": "neva.nemo"}}
    core = client.CoreV1Api(api)
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    core.create_namespaced_persistent_volume_claim(namespace, {"metadata": {"name": "checkpoints"}, "spec": claim})
    for index in range(count):
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "MultimodalDeployment",
            "metadata": {"name": f"r{index:04}"},
            "spec": {"model": {"type": "neva", "visualCheckpoint": checkpoint}, "numGpus": 0, "suspend": True},
        }
        custom.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, body)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _print(ours: Figures, peer: Figures, arguments: argparse.Namespace) -> None:
    rows = (
        ("first pass over all resources, s", ours.start_seconds, peer.start_seconds),
        ("resident memory, MiB", ours.memory_mib, peer.memory_mib),
        ("CPU while idle, % of a core", ours.cpu_percent, peer.cpu_percent),
        (f"writes in {arguments.idle} s without a change", ours.idle_writes, peer.idle_writes),
        ("edit to first write, p50, ms", ours.edit_p50_ms, peer.edit_p50_ms),
        ("edit to first write, p99, ms", ours.edit_p99_ms, peer.edit_p99_ms),
    )
    print(f"{arguments.resources} resources, {arguments.edits} edits")
    print(f"{'':<36}{'operator':>10}{'bare kopf':>11}{'ratio':>8}")
    for label, mine, theirs in rows:
        ratio = f"{mine / theirs:8.2f}" if theirs else "       -"
        print(f"{label:<36}{mine:>10.1f}{theirs:>11.1f}{ratio}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resources", type=int, default=500)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--idle", type=int, default=60, help="seconds")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between edits")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
