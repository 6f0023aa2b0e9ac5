"""What a machine lacks is named before anything is built, with every way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multimodal_cluster.errors import ClusterError
from multimodal_cluster.paths import Paths
from multimodal_cluster.progress import Progress
from multimodal_images import building


@pytest.mark.parametrize("user", [0, 1000])
def test_without_debian_packages_the_base_is_an_image(
    user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a machine without apt-get nor a user who may not use it makes the base image."""
    if user:
        apt = tmp_path / "apt-get"
        apt.write_text("#!/bin/sh\nexit 1\n")
        apt.chmod(0o755)
    uv = tmp_path / "uv"
    uv.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CONTAINER_ENGINE", "docker")
    monkeypatch.delenv("BASE", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(building.uv, "program", lambda _paths: uv)
    with pytest.raises(ClusterError, match="missing: mmdebstrap") as caught:
        building.publish(Paths(tmp_path / "cache"), Progress(), "127.0.0.1:5000")
    assert "set BASE to an image with Python 3.11" in caught.value.remedy
