"""What is asked of kind and Docker, by programs in their place that write down their arguments."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from multimodal_cluster import binaries, daemons, kind, registry_container
from multimodal_cluster.daemons import Daemon
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.kind import AUDIT_LOG, CONFIG, NODE, NODE_AUDIT_LOG, SYSTEM, KindCluster
from multimodal_cluster.locks import locked
from multimodal_cluster.paths import Paths
from multimodal_cluster.progress import Progress

STAND_INS = {
    "kind": """\
case "$1 $2" in
  "get clusters") cat "$HERE/clusters" ;;
  "create cluster") echo multimodal > "$HERE/clusters" ;;
  "delete cluster") : > "$HERE/clusters" ;;
esac""",
    # There is no container to start before one was run; no image of a registry unless a test brings one.
    "docker": """\
case "$1" in
  start) test "$2" = multimodal-control-plane && rm "$HERE/stopped" || test -e "$HERE/registry" ;;
  run) touch "$HERE/registry" ;;
  exec) case "$2" in
    --interactive) cat > "$HERE/hosts.toml" ;;
    *) test ! -e "$HERE/stopped" ;;
  esac ;;
  pull) test -e "$HERE/reachable" ;;
  image) test -e "$HERE/here" ;;
  import) cp "$4" "$HERE/imported.tar" ;;
esac""",
    "kubectl": "echo '{\"clusters\": []}'",
    "helm": "",
}


class Answering:
    """An API server that is ready."""

    def __init__(self, _kubeconfig: Path) -> None:
        pass

    def says_ok(self, path: str) -> bool:
        return path == "/readyz"


@pytest.fixture(name="here")
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "clusters").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in STAND_INS.items():
        file = programs / name
        file.write_text(f'#!/bin/sh\nHERE={tmp_path}\necho {name} "$@" >> "$HERE/said"\n{script}\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(registry_container, "answers_here", lambda: True)
    monkeypatch.setattr(kind, "Api", Answering)
    monkeypatch.setattr(kind, "AUDIT_LOG", tmp_path / "out" / "audit.log")
    (tmp_path / "reachable").touch()
    return tmp_path


@pytest.fixture(name="kept")
def _kept(monkeypatch: pytest.MonkeyPatch) -> list[Daemon]:
    kept: list[Daemon] = []
    monkeypatch.setattr(daemons, "ensure", lambda daemon, *_: kept.append(daemon))
    return kept


def cluster(here: Path, **environ: str) -> KindCluster:
    paths = Paths(here / "cache")
    paths.state.mkdir(parents=True, exist_ok=True)
    paths.kubeconfig.touch()
    return KindCluster(paths, Progress(), 2, environ)


def said(here: Path, words: str) -> list[str]:
    return [line for line in (here / "said").read_text().splitlines() if line.startswith(words)]


def test_up_makes_cluster_registry_and_gpus_once(here: Path, kept: list[Daemon]) -> None:
    cluster(here).up()
    cluster(here).up()
    assert len(said(here, "kind create cluster")) == 1
    assert f"--config={CONFIG}" in said(here, "kind create cluster")[0]
    assert "--image" not in said(here, "kind create cluster")[0]
    assert len(said(here, "docker run")) == 1
    assert "--network=kind --publish=127.0.0.1:5000:5000" in said(here, "docker run")[0]
    assert said(here, "docker run")[0].endswith(" registry:3")
    assert (here / "hosts.toml").read_text() == '[host."http://multimodal-registry:5000"]\n'
    assert [(daemon.name, daemon.tracked) for daemon in kept] == [("gpu-keeper", False)] * 2
    assert kept[0].command[-2:] == ("multimodal-control-plane", "2")


def test_the_credentials_are_json_and_for_their_owner_only(here: Path, kept: list[Daemon]) -> None:
    cluster(here).up()
    file = Path(cluster(here).env()["KUBECONFIG"])
    assert json.loads(file.read_text()) == {"clusters": []}
    assert file.stat().st_mode & 0o777 == 0o600
    assert kept


@pytest.mark.usefixtures("kept")
def test_up_waits_for_what_kind_brings_along(here: Path) -> None:
    cluster(here).up()
    cluster(here).up()
    assert sum("rollout status" in line for line in said(here, "kubectl")) == 2 * len(SYSTEM)
    assert not any("rollout restart" in line for line in said(here, "kubectl"))


@pytest.mark.usefixtures("kept")
def test_a_stopped_node_is_started_and_its_pods_are_made_anew(here: Path) -> None:
    """Until its kubelet has looked at them, they seem as ready as they were."""
    (here / "clusters").write_text("multimodal\n")
    (here / "stopped").touch()
    cluster(here).up()
    assert said(here, "docker start multimodal-control-plane")
    assert not said(here, "kind create")
    actions = [word for line in said(here, "kubectl") for word in line.split() if word in {"restart", "status"}]
    assert actions == ["restart"] * len(SYSTEM) + ["status"] * len(SYSTEM)


@pytest.mark.usefixtures("kept")
def test_images_of_the_user_are_taken_as_they_are(here: Path) -> None:
    cluster(here, CLUSTER_NODE_IMAGE="mine/node:1", CLUSTER_REGISTRY_IMAGE="mine/registry:1").up()
    assert " --image=mine/node:1" in said(here, "kind create cluster")[0]
    assert said(here, "docker run")[0].endswith(" mine/registry:1")
    assert not said(here, "docker pull")


@pytest.mark.usefixtures("kept")
def test_an_image_that_is_here_is_not_pulled(here: Path) -> None:
    (here / "here").touch()
    cluster(here).up()
    assert said(here, "docker run")[0].endswith(" registry:3")
    assert not said(here, "docker pull")


@pytest.mark.usefixtures("kept")
def test_without_a_registry_of_images_the_registry_is_our_own_program(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "reachable").unlink()

    def build(group: binaries.Group, paths: Paths, _progress: Progress) -> None:
        file = binaries.program(group, "registry", paths)
        file.parent.mkdir(parents=True)
        file.write_bytes(b"a static program")
        file.chmod(0o755)

    monkeypatch.setattr(binaries, "build", build)
    cluster(here).up()
    image = said(here, "docker run")[0].split()[-1]
    assert image.startswith("cluster.local/registry:3.")
    (imported,) = said(here, "docker import")
    assert imported.endswith(f" {image}")
    assert '["/registry", "serve", "/config.json"]' in imported
    with tarfile.open(here / "imported.tar") as root:
        assert root.getmember("registry").mode & 0o111
        settings = json.load(root.extractfile("config.json"))  # type: ignore[arg-type]
    folder, port = settings["storage"]["filesystem"]["rootdirectory"], settings["http"]["addr"]
    assert f"--publish=127.0.0.1:5000{port} " in said(here, "docker run")[0]
    assert f"--volume=multimodal-registry:{folder}" in said(here, "docker run")[0]


@pytest.mark.usefixtures("kept")
def test_a_registry_that_does_not_answer_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_container, "answers_here", lambda: False)
    monkeypatch.setattr(registry_container, "READY_S", 0)
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:5000 does not answer") as caught:
        cluster(here).up()
    assert "docker logs multimodal-registry" in caught.value.remedy


@pytest.mark.parametrize("purge", [False, True])
def test_down_keeps_what_was_pushed_unless_it_is_to_go(here: Path, *, purge: bool) -> None:
    log = here / "out" / "audit.log"
    log.parent.mkdir()
    log.touch()
    cluster(here).down(purge=purge)
    assert log.exists() is not purge
    assert said(here, "kind delete cluster")
    assert said(here, "docker rm --force multimodal-registry")
    assert bool(said(here, "docker volume rm --force multimodal-registry")) is purge
    assert not (here / "cache" / "cluster" / "kubeconfig").exists()


@pytest.mark.usefixtures("kept")
def test_two_runs_take_turns(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "LOCK_DEADLINE_S", 0)
    with (
        locked(Paths(here / "cache").lock, seconds=0, what="the first"),
        pytest.raises(ClusterError, match="another run was still at it"),
    ):
        cluster(here).up()
    cluster(here).up()
    assert len(said(here, "kind create cluster")) == 1


@pytest.mark.usefixtures("kept")
def test_the_audit_log_is_readable_for_those_who_run_the_tests(here: Path) -> None:
    cluster(here).up()
    assert said(here, f"docker exec {NODE} chmod a+r {NODE_AUDIT_LOG}")
    folder, _, file = NODE_AUDIT_LOG.rpartition("/")
    assert CONFIG.parent / "out" / "kind" / file == AUDIT_LOG
    assert f"audit-log-path, value: {NODE_AUDIT_LOG}" in CONFIG.read_text()
    assert f"hostPath: out/kind\n        containerPath: {folder}\n" in CONFIG.read_text()


def test_a_missing_kind_is_named_before_anything_is_built(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(ClusterError, match="kind is not installed") as caught:
        cluster(here).up()
    assert caught.value.remedy == "install kind and run again"
    assert not (here / "cache" / "bin").exists()
