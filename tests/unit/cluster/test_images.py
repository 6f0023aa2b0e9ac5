"""An image made without any image tool is one that the specification allows."""

from __future__ import annotations

import hashlib
import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from multimodal_cluster.images import compose, write_archive

NAME = "cluster.local/hello:1"
PROGRAM = b"\x7fELF a program"


@pytest.fixture(name="blobs")
def _blobs(tmp_path: Path) -> dict[str, bytes]:
    program = tmp_path / "hello"
    program.write_bytes(PROGRAM)
    archive = tmp_path / "hello.tar"
    write_archive(archive, NAME, compose(program, "1000:1000"))
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def follow(blobs: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """Read a blob by its descriptor, as every client does: size and digest must be true."""
    data = blobs[f"blobs/{descriptor['digest'].replace(':', '/')}"]
    assert len(data) == descriptor["size"]
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == descriptor["digest"]
    return data


def test_the_way_from_the_index_leads_to_the_program(blobs: dict[str, bytes]) -> None:
    assert json.loads(blobs["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (described,) = json.loads(blobs["index.json"])["manifests"]
    assert described["annotations"] == {"io.containerd.image.name": NAME}
    manifest = json.loads(follow(blobs, described))
    config = json.loads(follow(blobs, manifest["config"]))
    (layer,) = (follow(blobs, each) for each in manifest["layers"])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert config["config"] == {"Entrypoint": ["/hello"], "User": "1000:1000", "WorkingDir": "/"}
    with tarfile.open(fileobj=BytesIO(layer)) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.mode) == ("hello", 0o755)
        assert tar.extractfile(member).read() == PROGRAM  # type: ignore[union-attr]


def test_the_same_program_makes_the_same_image(tmp_path: Path) -> None:
    program = tmp_path / "hello"
    program.write_bytes(PROGRAM)
    assert compose(program, "0:0") == compose(program, "0:0")
