"""A program's folder is named after what decides its bytes, so a changed pin is never served from the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from multimodal_cluster import binaries
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.paths import Paths
from multimodal_cluster.progress import Progress


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


def test_a_build_that_fails_says_so_with_the_compilers_words(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    broken = binaries.Group("tools", "", {"nothing": "./nothing"}, {})
    with pytest.raises(ClusterError, match=r"nothing: `go build \./nothing` ended with 1") as caught:
        binaries.build(broken, paths, Progress())
    assert str(paths.logs / "build-nothing.log") in caught.value.report()
    assert "directory not found" in caught.value.report()


def test_what_was_built_is_not_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = Paths(tmp_path)
    for _ in range(2):
        binaries.build(binaries.TOOLS, paths, Progress())
    assert capsys.readouterr().out.count("build pause") == 1
    assert {entry.name for entry in binaries.folder_of(binaries.TOOLS, paths).iterdir()} == {".lock", "pause", "volume"}
