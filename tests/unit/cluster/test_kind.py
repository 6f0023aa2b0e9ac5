"""What is asked of kind and Docker, by programs in their place that write down their arguments."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from multimodal_cluster import daemons
from multimodal_cluster.daemons import Daemon
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.kind import CONFIG, KindCluster
from multimodal_cluster.paths import Paths
from multimodal_cluster.progress import Progress

STAND_INS = {
    "kind": """\
case "$1 $2" in
  "get clusters") cat "$HERE/clusters" ;;
  "create cluster") echo multimodal > "$HERE/clusters" ;;
  "delete cluster") : > "$HERE/clusters" ;;
esac""",
    # There is no container to start before one was run.
    "docker": """\
case "$1" in
  start) test -e "$HERE/registry" ;;
  run) touch "$HERE/registry" ;;
  exec) test "$2" != --interactive || cat > "$HERE/hosts.toml" ;;
esac""",
    "kubectl": "echo '{}'",
    "helm": "",
}


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
    return tmp_path


@pytest.fixture(name="kept")
def _kept(monkeypatch: pytest.MonkeyPatch) -> list[Daemon]:
    kept: list[Daemon] = []
    monkeypatch.setattr(daemons, "ensure", lambda daemon, *_: kept.append(daemon))
    return kept


def cluster(here: Path) -> KindCluster:
    paths = Paths(here / "cache")
    paths.state.mkdir(parents=True, exist_ok=True)
    paths.kubeconfig.touch()
    return KindCluster(paths, Progress(), 2)


def said(here: Path, words: str) -> list[str]:
    return [line for line in (here / "said").read_text().splitlines() if line.startswith(words)]


def test_up_makes_cluster_registry_and_gpus_once(here: Path, kept: list[Daemon]) -> None:
    cluster(here).up()
    cluster(here).up()
    assert len(said(here, "kind create cluster")) == 1
    assert f"--config={CONFIG}" in said(here, "kind create cluster")[0]
    assert len(said(here, "docker run")) == 1
    assert "--network=kind --publish=127.0.0.1:5000:5000" in said(here, "docker run")[0]
    assert (here / "hosts.toml").read_text() == '[host."http://multimodal-registry:5000"]\n'
    assert [(daemon.name, daemon.tracked) for daemon in kept] == [("gpu-keeper", False)] * 2
    assert kept[0].command[-2:] == ("multimodal-control-plane", "2")


def test_the_credentials_are_json_and_for_their_owner_only(here: Path, kept: list[Daemon]) -> None:
    cluster(here).up()
    file = Path(cluster(here).env()["KUBECONFIG"])
    assert json.loads(file.read_text() or "{}") == {}
    assert file.stat().st_mode & 0o777 == 0o600
    assert kept


@pytest.mark.parametrize(("purge", "expected"), [(False, "docker stop "), (True, "docker rm --force --volumes ")])
def test_down_keeps_what_was_pushed_unless_it_is_to_go(here: Path, *, purge: bool, expected: str) -> None:
    cluster(here).down(purge=purge)
    assert said(here, "kind delete cluster")
    assert said(here, f"{expected}multimodal-registry")
    assert not (here / "cache" / "cluster" / "kubeconfig").exists()


def test_a_missing_kind_is_named_before_anything_is_built(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(ClusterError, match="kind is not installed") as caught:
        cluster(here).up()
    assert caught.value.remedy == "install kind and run again"
    assert not (here / "cache" / "bin").exists()
