"""Programs built from pinned Go modules: no package index carries them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster.errors import ClusterError
from multimodal_cluster.locks import locked
from multimodal_cluster.paths import SOURCES

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

GO_SOURCES: Final = SOURCES / "go"
# The API server alone takes four minutes on two idle cores; ten times that means something hangs.
BUILD_DEADLINE_S: Final = 2700.0


@dataclass(frozen=True, slots=True)
class Group:
    """Programs that one Go module of ours pins.

    Attributes:
        name: folder under `go/`.
        module: the module whose version is the group's version; empty for sources of our own.
        programs: name of the program → Go package.
        stamps: variables that carry the version, `{version}`, `{major}` and `{minor}` filled in.
    """

    name: str
    module: str
    programs: dict[str, str]
    stamps: dict[str, str]


def _kubernetes_stamps() -> dict[str, str]:
    values = {
        "gitVersion": "v{version}",
        "gitMajor": "{major}",
        "gitMinor": "{minor}",
        "gitTreeState": "clean",
        "gitCommit": "unknown",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    # Without them the server says v0.0.0 and its clients refuse features.
    places = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return {f"{place}.{variable}": value for place in places for variable, value in values.items()}


KUBERNETES: Final = Group(
    "kubernetes",
    "k8s.io/kubernetes",
    {
        program: f"k8s.io/kubernetes/cmd/{program}"
        for program in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        )
    },
    _kubernetes_stamps(),
)
ETCD: Final = Group("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "."}, {})
REGISTRY: Final = Group(
    "registry",
    "github.com/distribution/distribution/v3",
    {"registry": "github.com/distribution/distribution/v3/cmd/registry"},
    {"github.com/distribution/distribution/v3/version.version": "v{version}"},
)
COREDNS: Final = Group("coredns", "github.com/coredns/coredns", {"coredns": "."}, {})
LOCAL_PATH: Final = Group(
    "local-path-provisioner",
    "github.com/rancher/local-path-provisioner",
    {"local-path-provisioner": "github.com/rancher/local-path-provisioner"},
    {"main.VERSION": "v{version}"},
)
HELM: Final = Group(
    "helm",
    "helm.sh/helm/v4",
    {"helm": "helm.sh/helm/v4/cmd/helm"},
    {"helm.sh/helm/v4/internal/version.version": "v{version}"},
)
TOOLS: Final = Group("tools", "", {"pause": "./pause", "volume": "./volume"}, {})

# What the control plane needs comes first: the longest build should not wait for a short one to fail.
GROUPS: Final = (KUBERNETES, ETCD, REGISTRY, COREDNS, LOCAL_PATH, HELM, TOOLS)
# program → what builds it
CLIENTS: Final = {"kubectl": KUBERNETES, "helm": HELM}


def version_of(group: Group) -> str:
    """Read the version that the group's go.mod pins, without its leading v; `0` for sources of our own."""
    if not group.module:
        return "0"
    pinned = re.search(rf"^(?:require)?\s*{re.escape(group.module)} v(\S+)", _go_mod(group), re.MULTILINE)
    if pinned is None:
        raise ClusterError(group.name, f"go.mod pins no version of {group.module}", f"add it to go/{group.name}/go.mod")
    return pinned.group(1)


def _go_mod(group: Group) -> str:
    return (GO_SOURCES / group.name / "go.mod").read_text()


def folder_of(group: Group, paths: Paths) -> Path:
    """Name the folder of a group's programs after everything that decides their bytes."""
    digest = hashlib.sha256()
    for file in sorted((GO_SOURCES / group.name).rglob("*")):
        if file.is_file():
            digest.update(str(file.relative_to(GO_SOURCES)).encode() + b"\0" + file.read_bytes())
    digest.update(repr(_link_flags(group)).encode())
    return paths.binaries / f"{group.name}-{version_of(group)}-{digest.hexdigest()[:8]}"


def program(group: Group, name: str, paths: Paths) -> Path:
    """Name the file of one program."""
    return folder_of(group, paths) / name


def build(group: Group, paths: Paths, progress: Progress, *, only: str | None = None) -> None:
    """Build the group's programs that are not there yet; two runs at once build them once.

    Args:
        group: what to build.
        paths: where it goes.
        progress: told about each program.
        only: the one program wanted, where not all are.
    """
    folder = folder_of(group, paths)
    wanted = {name: package for name, package in group.programs.items() if only in {None, name}}
    if all((folder / name).exists() for name in wanted):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", seconds=BUILD_DEADLINE_S, what=f"the build of {group.name}"):
        for name, package in wanted.items():
            if not (folder / name).exists():
                with progress.step(f"build {name} {version_of(group)} (once; later runs take it from the cache)"):
                    _build_program(group, name, package, folder / name, log=paths.logs / f"build-{name}.log")


def _link_flags(group: Group) -> str:
    version = version_of(group)
    major, minor, *_ = [*version.split("."), "0"]
    stamps = [
        f"-X {variable}={value.format(version=version, major=major, minor=minor)}"
        for variable, value in group.stamps.items()
    ]
    return " ".join(["-s", "-w", *stamps])


def _build_program(group: Group, name: str, package: str, target: Path, log: Path) -> None:
    if shutil.which("go") is None:
        raise ClusterError("go", "the Go compiler is not installed", "install Go 1.25 or later and run again")
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly",
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch, log.open("w") as output:
        built = Path(scratch) / name
        command = [
            "go",
            "build",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            _link_flags(group),
            "-o",
            str(built),
            package,
        ]
        try:
            done = subprocess.run(
                command,
                cwd=GO_SOURCES / group.name,
                env=environment,
                stdout=output,
                stderr=output,
                timeout=BUILD_DEADLINE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            problem = f"not built after {BUILD_DEADLINE_S:g}s"
            raise ClusterError(name, problem, "see whether the Go module proxy answers, and run again", log) from error
        if done.returncode != 0:
            remedy = "see whether the Go module proxy answers and the disk has room, and run again"
            raise ClusterError(name, f"`go build {package}` ended with {done.returncode}", remedy, log)
        built.rename(target)
