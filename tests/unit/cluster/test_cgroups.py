"""Control groups of both versions, on the kernel's own trees."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_cluster import cgroups
from multimodal_cluster.errors import ClusterError

NAME = f"multimodal-test-{os.getpid()}"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root only")


@pytest.fixture(name="unified")
def _unified() -> Iterator[Path]:
    """Give the unified tree, which every kernel can mount beside others."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=True, timeout=10)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True, timeout=10)


@pytest.fixture(name="tree", params=["machine", "version 2"])
def _tree(request: pytest.FixtureRequest) -> Path:
    """Give the trees of both versions."""
    tree: Path = cgroups.ROOT if request.param == "machine" else request.getfixturevalue("unified")
    return tree


def test_what_is_adopted_is_found_and_ended_and_nothing_is_left(tree: Path) -> None:
    cgroups.prepare(NAME, tree)
    ours = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["sleep", "60"])
    try:
        cgroups.adopt(ours.pid, NAME, tree)
        assert cgroups.members(NAME, tree) == {ours.pid}
        cgroups.kill_all(NAME, tree)
        assert ours.wait(timeout=10) == -9
        assert other.poll() is None
        assert cgroups.members(NAME, tree) == set()
    finally:
        for process in (ours, other):
            process.kill()
            process.wait(timeout=10)
        cgroups.remove(NAME, tree)
    assert cgroups.groups(NAME, tree) == []


def test_children_of_what_is_adopted_are_ours_too(tree: Path) -> None:
    cgroups.prepare(NAME, tree)
    script = "read line; sleep 60 & echo $!; wait"
    parent = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        cgroups.adopt(parent.pid, NAME, tree)
        parent.stdin.write("go\n")
        parent.stdin.flush()
        child = int(parent.stdout.readline())
        assert cgroups.members(NAME, tree) == {parent.pid, child}
    finally:
        cgroups.kill_all(NAME, tree)
        parent.communicate(timeout=10)
        cgroups.remove(NAME, tree)


def test_a_group_that_holds_a_process_is_named_when_it_should_go(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "REMOVE_DEADLINE_S", 0)
    cgroups.prepare(NAME, tree)
    process = subprocess.Popen(["sleep", "60"])
    try:
        cgroups.adopt(process.pid, NAME, tree)
        with pytest.raises(ClusterError, match=f"{NAME}/daemons cannot be removed"):
            cgroups.remove(NAME, tree)
    finally:
        process.kill()
        process.wait(timeout=10)
        monkeypatch.undo()
        cgroups.remove(NAME, tree)


def test_processes_at_the_top_of_a_containers_tree_make_room(unified: Path) -> None:
    """A group of version 2 has processes or children; a container begins with its processes at the top."""
    controllers = (unified / "cgroup.controllers").read_text().split()
    assert controllers, "no controller is left for the unified tree"
    (unified / "cgroup.subtree_control").write_text(f"+{controllers[0]}")
    top = unified / NAME
    top.mkdir()
    tenant = subprocess.Popen(["sleep", "60"])
    try:
        (top / "cgroup.procs").write_text(str(tenant.pid))
        cgroups.prepare("ours", top)
        assert (top / "init" / "cgroup.procs").read_text().split() == [str(tenant.pid)]
        assert controllers[0] in (top / "ours" / "cgroup.controllers").read_text().split()
    finally:
        tenant.kill()
        tenant.wait(timeout=10)
        cgroups.remove("ours", top)
        cgroups.remove("init", top)
        cgroups.remove(NAME, unified)


def test_the_version_is_told_by_the_unified_file(tmp_path: Path) -> None:
    assert not cgroups.is_v2(tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    assert cgroups.is_v2(tmp_path)
    assert cgroups.trees(tmp_path) == [tmp_path]
