"""Checkpoints made to do harm: each is one error that names the file and the member, and nothing else happens."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
from multimodal_builder.checkpoints.members import DirectoryMembers
from support import forms
from support.archives import CKPT
from support.fuzz_corpus import distributed_archive, nemo2_archive, read_checkpoint, small_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from multimodal_api.errors import Failure
    from support.archives import Archive

METADATA = "model_weights/.metadata"


def refusal(archive: Archive, folder: Path) -> Failure:
    path = folder / "model.nemo"
    path.write_bytes(archive.to_bytes())
    with pytest.raises(ProductError) as caught:
        read_checkpoint(path)
    assert caught.value.failure.at.startswith("model.nemo: ")
    return caught.value.failure


def with_ckpt_pickle(pickled: bytes) -> Archive:
    archive = small_archive()
    archive.members[CKPT] = forms.with_pickle(archive.members[CKPT], pickled)
    return archive


def nested(depth: int) -> tuple[Any, ...]:
    """A tuple of few bytes with 2**depth parts."""
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value, value)
    return value


def test_a_key_whose_hash_has_no_end_is_refused_at_once(tmp_path: Path) -> None:
    body = pickle.dumps(nested(60), protocol=2)
    failure = refusal(with_ckpt_pickle(body[:2] + b"}" + body[2:-1] + b"K\x01s."), tmp_path)
    assert failure.reason is Reason.CHECKPOINT_UNSAFE
    assert "nests tuples" in failure.problem


def test_a_value_whose_text_has_no_end_is_refused_at_once(tmp_path: Path) -> None:
    """Lists cannot be keys, but they can be shown in an error."""
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    archive = distributed_archive(tmp_path)
    metadata = pickle.loads(archive.members[METADATA])  # noqa: S301 (our own file)
    first = next(iter(metadata.state_dict_metadata.values()))
    first.size = value
    archive.members[METADATA] = pickle.dumps(metadata)
    assert METADATA in refusal(archive, tmp_path).at


class StateWithAttributes:
    """Pickled as torch's state dictionaries are, which carry attributes; one here is named as a method."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ((("w", None),),), {"_metadata": {"": {"version": 1}}, "items": 1, "__class__": 2}


def test_attributes_of_a_dictionary_are_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "model.nemo"
    path.write_bytes(with_ckpt_pickle(pickle.dumps(StateWithAttributes(), protocol=2)).to_bytes())
    read_checkpoint(path)


def test_two_members_of_one_name_inside_a_ckpt_are_refused(tmp_path: Path) -> None:
    archive = small_archive()
    packed = io.BytesIO(archive.members[CKPT])
    with zipfile.ZipFile(packed, "a") as zipped, pytest.warns(UserWarning, match="Duplicate"):
        zipped.writestr(next(name for name in zipped.namelist() if name.endswith("data.pkl")), b"}.")
    archive.members[CKPT] = packed.getvalue()
    failure = refusal(archive, tmp_path)
    assert (failure.reason, failure.at) == (Reason.CHECKPOINT_UNSAFE, f"model.nemo: {CKPT}")


def index_of(shape: tuple[int, ...], name: str = "model.decoder.layers.x") -> bytes:
    properties = TensorProperties.create_from_tensor(torch.ones(1))
    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), torch.Size(shape))
    entry = TensorStorageMetadata(properties, torch.Size(shape), [chunk])
    place = _StorageInfo("__0_0.distcp", 0, 100)
    return pickle.dumps(Metadata({name: entry}, storage_data={MetadataIndex(name, chunk.offsets): place}))


@pytest.mark.parametrize(
    ("shape", "says"), [((2**40, 8), "bytes of weights in files of"), ((2**40, 0), "not that of stacked layers")]
)
def test_a_forged_number_of_layers_takes_no_memory(tmp_path: Path, shape: tuple[int, ...], says: str) -> None:
    archive = distributed_archive(tmp_path)
    archive.members[METADATA] = index_of(shape)
    assert says in refusal(archive, tmp_path).problem


def test_a_path_out_of_the_weights_is_refused(tmp_path: Path) -> None:
    archive = distributed_archive(tmp_path)
    archive.members[METADATA] = archive.members[METADATA].replace(b"__0_0.distcp", b"../../../etc")
    failure = refusal(archive, tmp_path)
    assert (failure.reason, failure.at) == (Reason.CHECKPOINT_UNSAFE, "model.nemo: model_weights: '../../../etc'")


def test_a_tag_in_the_context_is_refused_with_its_line(tmp_path: Path) -> None:
    archive = nemo2_archive()
    archive.members["context/model.yaml"] = b"config:\n  a: !!python/object/apply:os.system ['touch owned']\n"
    failure = refusal(archive, tmp_path)
    assert (failure.reason, failure.at) == (Reason.CHECKPOINT_UNSAFE, "model.nemo: context/model.yaml: line 2")


def test_a_tuple_in_the_context_is_a_list(tmp_path: Path) -> None:
    archive = nemo2_archive()
    archive.members["context/model.yaml"] += b"more: !!python/tuple [1, 2]\n"
    path = tmp_path / "model.nemo"
    path.write_bytes(archive.to_bytes())
    read_checkpoint(path)


def test_a_target_in_the_context_is_never_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive = nemo2_archive()
    archive.members["context/model.yaml"] += b"more: {_target_: os.system, command: touch owned}\n"
    path = tmp_path / "model.nemo"
    path.write_bytes(archive.to_bytes())
    read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**60),
        struct.pack("<Q", 2) + b"[]",
        *(
            struct.pack("<Q", len(text)) + text
            for text in (
                json.dumps({"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}).encode(),
                json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}).encode(),
                json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [2**62, 2**62 + 4]}}).encode(),
                json.dumps({"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}).encode(),
                b"[" * 100_000,
            )
        ),
    ],
)
def test_a_forged_safetensors_header_is_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(header)
    with pytest.raises(ProductError, match=r"model\.safetensors"):
        HuggingFaceFolder(tmp_path).tensors()


@pytest.mark.parametrize(
    "deed",
    [
        lambda folder: (folder / "model_weights").symlink_to("/etc"),
        lambda folder: (folder / CKPT).symlink_to("/etc/passwd"),
    ],
    ids=["a folder", "a file"],
)
def test_links_in_a_folder_are_refused(tmp_path: Path, deed: Callable[[Path], None]) -> None:
    folder = tmp_path / "model"
    archive = small_archive()
    del archive.members[CKPT]
    forms.unpack(archive, folder)
    deed(folder)
    with pytest.raises(ProductError, match="link") as caught:
        read_checkpoint(folder)
    assert caught.value.failure.reason is Reason.CHECKPOINT_UNSAFE


def test_a_file_that_becomes_a_link_later_is_not_followed(tmp_path: Path) -> None:
    forms.unpack(distributed_archive(tmp_path), tmp_path / "model")
    member = DirectoryMembers(tmp_path / "model").open("model_weights/__0_0.distcp")
    data = tmp_path / "model/model_weights/__0_0.distcp"
    data.rename(tmp_path / "aside")
    data.symlink_to(tmp_path / "aside")
    with pytest.raises(ProductError, match="changed"):
        member.read()
