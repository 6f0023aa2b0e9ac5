"""What counts as left behind, and in which order it is removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multimodal_cluster import cgroups
from multimodal_cluster.leavings import found, mounts_below, own_mounts
from multimodal_cluster.paths import Paths

STATE = Path("/cache/cluster")


def line(point: str) -> str:
    return f"36 35 98:0 / {point} rw,noatime - ext4 /dev/root rw"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (["/", "/cache", "/home"], []),
        (["/cache/cluster"], []),
        (["/cache/cluster-of-another/run"], []),
        (["/cache/cluster/run", "/cache/cluster/run/a/b", "/cache/cluster/run/a"],
         ["/cache/cluster/run/a/b", "/cache/cluster/run/a", "/cache/cluster/run"]),
        (["/cache/cluster/a/secret", "/cache/cluster/a/token"], ["/cache/cluster/a/token", "/cache/cluster/a/secret"]),
        ([r"/cache/cluster/with\040space\134slash"], ["/cache/cluster/with space\\slash"]),
    ],
    ids=["elsewhere", "the folder itself", "same beginning", "deepest first", "latest first", "escapes"],
)  # fmt: skip
def test_mounts_below_a_folder_are_listed_in_the_order_of_unmounting(points: list[str], expected: list[str]) -> None:
    assert mounts_below(STATE, [line(point) for point in points]) == [Path(each) for each in expected]


def test_a_mount_that_is_covered_by_a_later_one_is_unmounted_after_it() -> None:
    twice = [line("/cache/cluster/run"), line("/cache/cluster/run")]
    assert mounts_below(STATE, twice) == [STATE / "run", STATE / "run"]


def test_a_disk_that_someone_mounted_for_images_is_no_mount_of_the_cluster() -> None:
    theirs = ["/cache", "/cache/cluster", "/cache/cluster/containerd", "/cache/cluster/registry", "/cache/cluster/logs"]
    ours = ["/cache/cluster/run/kubelet/pods/1/token", "/cache/cluster/containerd/tmpmounts/containerd-mount1"]
    assert own_mounts(Paths(Path("/cache")), [line(point) for point in (*theirs, *ours)]) == [Path(p) for p in ours]


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root only")
def test_control_groups_tell_of_a_cluster_whose_folder_was_deleted(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert not found(paths)
    cgroups.prepare(paths.cgroup)
    try:
        assert found(paths)
    finally:
        cgroups.remove(paths.cgroup)
    assert not found(paths)
