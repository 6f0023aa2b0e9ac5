"""Checkpoints of real sizes: the generated ones are torch's own form, and each of their bytes is read once."""

from __future__ import annotations

import json
import tarfile
import time
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from multimodal_builder import streaming
from multimodal_builder.checkpoints.window import ByteFile
from multimodal_builder.main import main
from support.archives import CLIP
from support.large_checkpoint import Noise, Sizes, hole, write_classic, write_distributed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LARGE = Sizes(layers=80, hidden=8192, ffn=28672, heads=64, groups=8)
"""The 70B one: 137 GB."""
SMALL = Sizes(layers=3, hidden=64, ffn=96, heads=4, groups=2, rows=512)


def unpack(path: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(path.parent / "unpacked", filter="data")
    return path.parent / "unpacked"


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """What torch reads, under the names of a distributed checkpoint."""
    folder = unpack(path)
    if (folder / "model_weights.ckpt").exists():
        return torch.load(folder / "model_weights.ckpt")  # type: ignore[no-any-return]
    reader = dcp.FileSystemReader(folder / "model_weights")
    state = {
        name: torch.empty(e.size, dtype=e.properties.dtype)
        for name, e in reader.read_metadata().state_dict_metadata.items()
    }  # type: ignore[union-attr]
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


@pytest.fixture(params=[write_distributed, write_classic], ids=["torch_dist", "ckpt"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.nemo"
    request.param(path, SMALL, Noise(2**20))
    (tmp_path / "clip").symlink_to(CLIP)
    return path


def test_torch_reads_what_is_generated(archive: Path) -> None:
    state = loaded(archive)
    assert sum(tensor.nbytes for tensor in state.values()) == SMALL.nbytes
    assert all(tensor.view(torch.int16).unique().numel() > 1 for tensor in state.values())


@pytest.mark.parametrize("piece", [streaming.PIECE_BYTES, 1000, 1])
def test_each_byte_is_read_once(archive: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", piece)  # a tensor in one; a few rows; less than a row
    counted = 0
    read_into = ByteFile.read_into

    def count(self: ByteFile, offset: int, buffer: memoryview) -> None:
        nonlocal counted
        counted += len(buffer) if self.at.endswith(".nemo") else 0
        read_into(self, offset, buffer)

    monkeypatch.setattr(ByteFile, "read_into", count)
    out = archive.parent / "out"
    assert main(["convert", str(archive), str(out)]) == 0
    # The rest is headers, which are looked at more than once; the tokenizer is read for two purposes.
    assert SMALL.nbytes < counted < archive.stat().st_size * 1.2
    found = load_file(out / "llm" / "model.safetensors")
    state = loaded(archive)
    down = state.get("model.decoder.layers.mlp.linear_fc2.weight")
    for layer in range(SMALL.layers):
        wanted = down[layer] if down is not None else state[f"model.decoder.layers.{layer}.mlp.linear_fc2.weight"]
        assert found[f"model.layers.{layer}.mlp.down_proj.weight"].view(torch.int16).equal(wanted.view(torch.int16))


@pytest.mark.parametrize("write", [write_distributed, write_classic], ids=["torch_dist", "ckpt"])
def test_a_huge_checkpoint_is_inspected_by_its_headers(
    tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With holes in place of values, the file has its whole length and takes no room."""
    path = tmp_path / "model.nemo"
    write(path, LARGE, hole)
    (tmp_path / "clip").symlink_to(CLIP)
    counted: list[int] = []
    read_into = ByteFile.read_into
    monkeypatch.setattr(ByteFile, "read_into", lambda f, o, b: (counted.append(len(b)), read_into(f, o, b)))
    start = time.monotonic()
    assert main(["inspect", str(path), "--json", "--num-gpus", "4"]) == 0
    assert time.monotonic() - start < 5
    assert sum(counted) < 4 * 2**20
    assert path.stat().st_size > 130e9
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["keyValueHeads"], found["numGpus"]) == (80, 8, 4)
    assert found["tensorParallel"] == [1, 2, 4, 8, 16, 32, 64]
    assert 33e9 < found["memory"]["weights"] < LARGE.nbytes / 4
