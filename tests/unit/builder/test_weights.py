"""Weight forms against torch itself: what torch wrote is read to the bit, and what it did not write is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from contextlib import suppress
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed._shard.sharded_tensor import metadata as sharded_tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from multimodal_api.engine import Dtype
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.casts import STORED, cast
from multimodal_builder.checkpoints import strided as strided_values
from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.distributed import open_distributed
from multimodal_builder.checkpoints.huggingface import SafetensorsSource
from multimodal_builder.checkpoints.members import DirectoryMembers
from multimodal_builder.checkpoints.tensors import CARRIERS, Array, TensorInfo, TensorSource, row_reader
from multimodal_builder.checkpoints.torch_zip import Storage, StoredTensor, TorchZip
from multimodal_builder.checkpoints.window import ByteFile, Window
from multimodal_builder.files import FileLog
from multimodal_builder.safetensors_writer import write_weights
from multimodal_builder.streaming import cut
from support.archives import DISTRIBUTED, Archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


def window(path: Path, data: bytes) -> Window:
    path.write_bytes(data)
    return ByteFile(os.open(path, os.O_RDONLY), path.name).window(path.name)


def saved(value: object, **options: Any) -> bytes:
    packed = io.BytesIO()
    torch.save(value, packed, **options)
    return packed.getvalue()


def read_all(open_source: Callable[[], TensorSource]) -> None:
    source = open_source()
    for name in source.infos():
        source.read(name)
        by_rows(source, name)


def by_rows(source: TensorSource, name: str) -> Array | None:
    """Read a tensor from its last row to its first, two at a time; None where it must be read whole."""
    info = source.infos()[name]
    reader = row_reader(source, name) if info.shape else None
    if reader is None:
        return None
    array = np.full(info.shape, 1, CARRIERS[info.dtype])
    for start in reversed(range(0, len(array), 2)):
        reader(array[start : start + 2], start)
    return array


def same(source: TensorSource, wanted: dict[str, torch.Tensor]) -> None:
    assert set(source.infos()) == set(wanted)
    for name, tensor in wanted.items():
        found = source.read(name)
        assert found.shape == tuple(tensor.shape)
        plain = tensor.clone(memory_format=torch.contiguous_format)
        assert found.tobytes() == plain.view(torch.uint8).numpy().tobytes() if tensor.dim() else True
        rows = by_rows(source, name)
        assert rows is None or rows.tobytes() == found.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_ckpt_is_read_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = (torch.randn(12, 5) * 100).to(dtype)
    state = {
        "plain": whole,
        "a view into shared storage": whole[3:7],
        "empty": whole[:0],
        "one row": whole[:1],
        "parameter": torch.nn.Parameter(whole.clone(), requires_grad=False),
    }
    same(CkptSource(window(tmp_path / "x.ckpt", saved(state))), state)


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "turned": lambda whole: whole[0].t(),
    "turned three axes": lambda whole: whole.permute(2, 0, 1),
    "columns": lambda whole: whole[:, :, 2:4],
    "turned columns": lambda whole: whole[1, 1:, 1:3].t(),
    "every other": lambda whole: whole[::2, 1::3, ::2],
    "one column": lambda whole: whole[0, :, 3],
    "an axis of one": lambda whole: whole[:, 1:2, :].transpose(0, 1),
    "expanded": lambda whole: whole[0, 0].expand(6, 5),
    "one value everywhere": lambda whole: whole[1, 2, 3].expand(7, 2),
    "windows that overlap": lambda whole: whole.reshape(-1).unfold(0, 6, 4),
    "turned, none": lambda whole: whole[0, :0].t(),
}


@pytest.mark.parametrize("piece", [strided_values.PIECE_BYTES, 64, 16, 1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_that_do_not_lie_one_behind_the_other_are_read_as_torch_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, piece: int
) -> None:
    whole = torch.randn(4, 7, 5).to(dtype)
    views = {name: view(whole) for name, view in VIEWS.items()}
    assert not any(
        view.is_contiguous() for name, view in views.items() if name not in {"an axis of one", "turned, none"}
    )
    data = saved(views)
    source = CkptSource(window(tmp_path / "x.ckpt", data))  # what repeats values is measured by the true piece
    monkeypatch.setattr(strided_values, "PIECE_BYTES", piece)
    same(source, torch.load(io.BytesIO(data)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    strides=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    offset=st.integers(0, 3),
    rows=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_any_strides_and_rows_are_those_of_torch(
    tmp_path: Path, shape: list[int], strides: list[int], offset: int, rows: tuple[int, int]
) -> None:
    view = torch.arange(400.0).as_strided(shape, strides[: len(shape)], offset)
    archive = TorchZip(window(tmp_path / "x.ckpt", saved({"w": view})))
    loaded = archive.load()
    assert isinstance(loaded, dict)
    first, last = sorted(min(row, shape[0]) for row in rows)
    found = np.empty((last - first, *shape[1:]), np.float32)
    archive.read_rows(loaded["w"], found, first, "w")
    assert np.array_equal(found, view[first:last].numpy())


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "says"),
    [
        (0, (4, 4), (1, 5), "exceeds its 16 stored values"),
        (1, (4, 4), (1, 4), "exceeds its 16 stored values"),
        (3, (4, 4), (-1, 4), "are none"),
        (0, (4, 4), (2**60, 1), "are none"),
        (0, (4, 4), (4,), "for shape"),
        (0, (2**26,), (0,), "repeats stored values"),
        (0, (2**24, 2**24), (0, 1), "exceeds its 16 stored values"),
    ],
)
def test_strides_that_leave_the_storage_or_multiply_it_are_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ProductError, match=says):
        StoredTensor(Storage("F32", "0", 16), offset, shape, strides).check("x.ckpt: w")


def test_entries_that_are_no_tensors_have_no_part(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "_extra_state": io.BytesIO(b"anything"), "none": None, "nested": {"n": 1}}
    assert list(CkptSource(window(tmp_path / "x.ckpt", saved(state))).infos()) == ["w"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False), "before 1.6"),
        (lambda: saved({"w": torch.ones(1).expand(2**30)}), "repeats stored values"),
        (lambda: saved([torch.ones(2)]), "no dictionary"),
        (lambda: b"not a zip", "neither a zip"),
        (lambda: saved({"w": torch.ones(2)})[:-30], "damaged or truncated"),
        (lambda: repacked({"w": torch.ones(2)}, zipfile.ZIP_DEFLATED), "compressed"),
        (lambda: repacked({"w": torch.ones(2)}, drop="data/0"), "no such member"),
        (lambda: repacked({"w": torch.ones(2)}, cut="data/0"), "announced"),
        (lambda: repacked({"w": torch.ones(2)}, replace={"byteorder": b"big"}), "big-endian"),
    ],
)  # fmt: skip
def test_a_ckpt_that_torch_did_not_write_is_refused(tmp_path: Path, data: Callable[[], bytes], says: str) -> None:
    with pytest.raises(ProductError, match=says) as caught:
        read_all(lambda: CkptSource(window(tmp_path / "x.ckpt", data())))
    assert caught.value.failure.reason is Reason.CHECKPOINT_UNREADABLE
    assert "x.ckpt" in caught.value.failure.at


def repacked(
    state: object,
    method: int = zipfile.ZIP_STORED,
    *,
    drop: str = "",
    cut: str = "",
    replace: dict[str, bytes] | None = None,
) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(state))) as before, zipfile.ZipFile(packed, "w", method) as after:
        for name in before.namelist():
            short = name.partition("/")[2]
            content = (replace or {}).get(short, before.read(name))
            if short != drop:
                after.writestr(name, content[:4] if short == cut else content)
    return packed.getvalue()


def test_a_storage_that_is_too_small_for_its_tensor_is_refused(tmp_path: Path) -> None:
    data = saved({"w": torch.arange(6.0).view(2, 3)})
    forged = data.replace(
        struct.pack("<BBBBB", 0x4B, 2, 0x4B, 3, 0x86), struct.pack("<BBBBB", 0x4B, 200, 0x4B, 3, 0x86)
    )
    assert forged != data
    with pytest.raises(ProductError, match="exceeds its 6 stored values"):
        CkptSource(window(tmp_path / "x.ckpt", forged))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_ckpt_gives_values_or_our_error(tmp_path: Path, places: list[tuple[int, int]]) -> None:
    data = bytearray(saved({"a": torch.ones(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}))
    for place, value in places:
        data[place % len(data)] = value
    with suppress(ProductError):
        source = CkptSource(window(tmp_path / "x.ckpt", bytes(data)))
        for name in source.infos():
            source.read(name)


def unpacked(folder: Path) -> Path:
    for name, content in Archive.read(DISTRIBUTED).members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "model_weights"


def opened(folder: Path) -> TensorSource:
    return open_distributed(DirectoryMembers(folder.parent), folder.name)


def test_a_distributed_checkpoint_is_what_torch_reads(tmp_path: Path) -> None:
    folder = unpacked(tmp_path)
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    layered: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        head, stacked, rest = name.partition("model.decoder.layers.")
        if stacked:
            layered |= {f"{head}{stacked}{number}.{rest}": layer for number, layer in enumerate(tensor)}
        else:
            layered[name] = tensor
    same(opened(folder), layered)


def write_chunks(folder: Path, name: str, tensor: torch.Tensor, sizes: tuple[int, ...], *, turned: bool) -> None:
    """Write a tensor cut into chunks of a size, the last ones smaller, with values in another order if `turned`."""
    folder.mkdir()
    data = io.BytesIO()
    chunks, places = [], {}
    for offsets in product(*(range(0, length, size) for length, size in zip(tensor.shape, sizes, strict=True))):
        part = tensor[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))]
        part = part.transpose(-1, -2).contiguous().transpose(-1, -2) if turned else part.contiguous()
        start = data.tell()
        torch.save(part, packed := io.BytesIO())
        data.write(packed.getvalue())
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), part.size()))
        places[MetadataIndex(name, torch.Size(offsets))] = _StorageInfo("__0_0.distcp", start, data.tell() - start)
    entry = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.size(), chunks)
    (folder / "__0_0.distcp").write_bytes(data.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({name: entry}, storage_data=places)))
    (folder / "metadata.json").write_bytes(Archive.read(DISTRIBUTED).members["model_weights/metadata.json"])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "sizes", [(4, 12, 10), (1, 12, 10), (1, 6, 10), (1, 12, 5), (2, 5, 10), (4, 12, 3), (3, 5, 4), (1, 1, 1)], ids=str
)
def test_chunks_may_be_cut_in_any_way(tmp_path: Path, sizes: tuple[int, ...], *, turned: bool) -> None:
    stacked = torch.randn(4, 12, 10)
    write_chunks(tmp_path / "weights", "decoder.layers.w", stacked, sizes, turned=turned)
    same(
        opened(tmp_path / "weights"),
        {f"decoder.layers.{number}.w": layer for number, layer in enumerate(stacked)},
    )


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sizes", [(2, 300, 200), (1, 100, 200), (2, 300, 100)], ids=str)
def test_what_is_read_by_rows_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], *, turned: bool
) -> None:
    stacked = torch.randn(2, 300, 200)
    write_chunks(tmp_path / "weights", "decoder.layers.w", stacked, sizes, turned=turned)
    source = opened(tmp_path / "weights")
    counted: list[int] = []
    read_into = ByteFile.read_into
    monkeypatch.setattr(ByteFile, "read_into", lambda f, o, b: (counted.append(len(b)), read_into(f, o, b)))
    for number, name in enumerate(source.infos()):
        rows = by_rows(source, name)
        assert rows is not None
        assert np.array_equal(rows, stacked[number].numpy())
    assert stacked.nbytes <= sum(counted) < 1.1 * stacked.nbytes


def test_megatrons_index_with_its_plans_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron-core subclasses torch's metadata, and some of its versions keep the plan of the save in it."""
    folder = unpacked(tmp_path)
    before = opened(folder).infos()
    plain = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301 (our own file)
    module = ModuleType("megatron.core.dist_checkpointing.strategies.torch")

    def made_there(name: str, *bases: type) -> type:
        made = type(name, bases, {"__module__": module.__name__})
        setattr(module, name, made)
        return made

    parts = module.__name__.split(".")
    for count in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    index = MetadataIndex("w", torch.Size([0, 0]))
    chunk = ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 1]))
    data = TensorWriteData(chunk, TensorProperties.create_from_tensor(torch.ones(1, 1)), torch.Size([1, 1]))
    plan = made_there("MCoreSavePlan", SavePlan)([WriteItem(index, WriteItemType.SHARD, data)], _StoragePrefix("__0_"))
    metadata = made_there("MCoreMetadata", Metadata).__new__(module.MCoreMetadata)
    metadata.__dict__ |= vars(plain) | {"mcore_data": {"w": {"shape": (1, 1)}}, "all_local_plans": [plan]}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert opened(folder).infos() == before


def test_byte_objects_have_no_part(tmp_path: Path) -> None:
    """Transformer Engine's extra states, which NeMo 2 saves for each layer."""
    state = {"w": torch.arange(4.0), "x._extra_state/shard_0_2": io.BytesIO(b"scales"), "n": {"step": torch.ones(())}}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "weights"), no_dist=True)
    (tmp_path / "weights/metadata.json").write_bytes(Archive.read(DISTRIBUTED).members["model_weights/metadata.json"])
    same(opened(tmp_path / "weights"), {"w": torch.arange(4.0), "n.step": torch.ones(())})


def test_the_index_of_torch_2_1_is_the_same(tmp_path: Path) -> None:
    """Its properties were those of sharded tensors, and it knew nothing of the writer and of transformations."""
    folder = unpacked(tmp_path)
    before = opened(folder).infos()
    index = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301 (our own file)
    for entry in index.state_dict_metadata.values():
        entry.properties = sharded_tensor.TensorProperties(dtype=entry.properties.dtype)
    for place in index.storage_data.values():
        vars(place).pop("transform_descriptors", None)
    for field in vars(index).keys() - {"state_dict_metadata", "planner_data", "storage_data"}:
        del vars(index)[field]
    (folder / ".metadata").write_bytes(pickle.dumps(index, protocol=2))
    assert opened(folder).infos() == before
    read_all(lambda: opened(folder))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "__0_0.distcp").unlink(), "missing"),
        (lambda f: (f / "__0_0.distcp").write_bytes((f / "__0_0.distcp").read_bytes()[:9000]), "truncated"),
        (lambda f: (f / "__0_0.distcp").write_bytes((f / "__0_1.distcp").read_bytes()), "something else|truncated"),
        (lambda f: (f / ".metadata").write_bytes(b"\x80\x04]."), "no dictionary"),
        (lambda f: (f / ".metadata").unlink(), "missing"),
        (lambda f: (f / "metadata.json").write_text("{}"), "not the description"),
        (
            lambda f: (f / "metadata.json").write_text('{"sharded_backend": "xarr", "sharded_backend_version": 1}'),
            "format xarr",
        ),
    ],
)  # fmt: skip
def test_a_damaged_distributed_checkpoint_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    folder = unpacked(tmp_path)
    damage(folder)
    with pytest.raises(ProductError, match=says) as caught:
        read_all(lambda: opened(folder))
    assert caught.value.failure.reason is Reason.CHECKPOINT_UNREADABLE
    assert "model_weights" in caught.value.failure.at


@pytest.mark.parametrize("offset", [b"\x00\x00", b"\x02\x00"])
def test_chunks_that_do_not_cover_a_tensor_once_are_refused(tmp_path: Path, offset: bytes) -> None:
    """Two chunks of the gated layer, at rows 0 and 256: moved together they leave a gap and an overlap."""
    folder = unpacked(tmp_path)
    metadata = folder / ".metadata"
    data = metadata.read_bytes()
    forged = data.replace(b"M\x00\x01", b"M" + offset)  # BININT2 256
    assert forged != data
    metadata.write_bytes(forged)
    with pytest.raises(ProductError):
        read_all(lambda: opened(folder))


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), target=st.sampled_from(list(Dtype)))
def test_casts_round_as_torch_does(bits: list[int], target: Dtype) -> None:
    wide = np.array(bits, dtype=np.uint32).view(np.float32)
    wanted = torch.from_numpy(wide.copy()).to(getattr(torch, target.value))
    with np.errstate(over="ignore", invalid="ignore"):
        found = cast(wide, source="F32", target=STORED[target])
        back = cast(found, source=STORED[target], target="F32")
    torch.testing.assert_close(
        torch.from_numpy(back.astype(np.float32)), wanted.float(), rtol=0, atol=0, equal_nan=True
    )


def test_written_weights_are_read_by_safetensors(tmp_path: Path) -> None:
    state = {"b": torch.randn(3, 4), "a": torch.randn(5).to(torch.bfloat16), "c": torch.zeros(0, 2)}
    log = FileLog(tmp_path)
    infos = [("b", TensorInfo("F32", (3, 4))), ("a", TensorInfo("BF16", (5,))), ("c", TensorInfo("F32", (0, 2)))]
    values = [cut(tensor.view(torch.uint8).numpy(), source="U8", target="U8") for tensor in state.values()]
    write_weights(tmp_path / "llm", infos, values, log)
    loaded = load_file(tmp_path / "llm" / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    same(SafetensorsSource(window(tmp_path / "copy", (tmp_path / "llm/model.safetensors").read_bytes())), state)
    (file,) = log.files
    assert (file.path, file.size) == ("llm/model.safetensors", (tmp_path / file.path).stat().st_size)


def test_large_weights_are_sharded_with_an_index(tmp_path: Path) -> None:
    infos = [(f"t{number}", TensorInfo("F32", (10,))) for number in range(5)]
    values = [cut(np.full(10, number, np.float32), source="F32", target="F32") for number in range(5)]
    write_weights(tmp_path, infos, values, FileLog(tmp_path), shard_bytes=85)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert load_file(tmp_path / file)[name][0] == float(name[1:])


@given(st.binary(max_size=300))
def test_any_bytes_are_safetensors_or_our_error(data: bytes) -> None:
    descriptor = os.memfd_create("x")
    os.write(descriptor, data)
    with ByteFile(descriptor, "x") as file, suppress(ProductError):
        source = SafetensorsSource(file.window("x"))
        for name in source.infos():
            source.read(name)
