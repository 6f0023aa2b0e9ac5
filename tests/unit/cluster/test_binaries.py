"""A program's folder is named after what decides its bytes, so a changed pin is never served from the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from multimodal_cluster import binaries
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.paths import Paths


@pytest.mark.parametrize("group", binaries.GROUPS, ids=lambda group: group.name)
def test_each_group_pins_one_version(group: binaries.Group, tmp_path: Path) -> None:
    version = binaries.version_of(group)
    assert version == "0" or version.count(".") == 2
    assert binaries.folder_of(group, Paths(tmp_path)).name.startswith(f"{group.name}-{version}-")


def test_a_changed_file_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = binaries.folder_of(binaries.COREDNS, Paths(tmp_path))
    shutil.copytree(binaries.GO_SOURCES, tmp_path / "go")
    monkeypatch.setattr(binaries, "GO_SOURCES", tmp_path / "go")
    assert binaries.folder_of(binaries.COREDNS, Paths(tmp_path)) == before
    source = tmp_path / "go" / "coredns" / "main.go"
    source.write_text(source.read_text() + "\n// changed\n")
    assert binaries.folder_of(binaries.COREDNS, Paths(tmp_path)) != before


def test_a_module_without_a_pin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coredns").mkdir()
    (tmp_path / "coredns" / "go.mod").write_text("module here\n")
    monkeypatch.setattr(binaries, "GO_SOURCES", tmp_path)
    with pytest.raises(ClusterError, match=r"go\.mod pins no version of github\.com/coredns/coredns"):
        binaries.version_of(binaries.COREDNS)
