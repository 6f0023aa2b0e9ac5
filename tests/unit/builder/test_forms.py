"""Every form on disk gives the same model: the tiny NeVA, written anew in each, is converted to the same bytes."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import nemo_writer

from multimodal_api.engine import Dtype
from multimodal_api.errors import ProductError
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder import streaming
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.checkpoints.distributed import open_distributed
from multimodal_builder.checkpoints.members import DirectoryMembers
from multimodal_builder.checkpoints.names import NamedSource
from multimodal_builder.inspection import inspect
from support import forms, upstream
from support.archives import CKPT, CLASSIC, CLIP, Archive
from support.conversion import write_model
from support.states import State, keep_tensors, saved, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_api.errors import Failure

LAYERS = 2
QKV = "self_attention.linear_qkv.weight"

Weights = dict[str, torch.Tensor]


def problems_of(path: Path, llm: Path | None = None) -> tuple[Failure, ...]:
    paths = CheckpointPaths(visual=path, llm=llm)
    inspection, _, opened = inspect(paths, family=Family.NEVA, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=None)
    opened.close()
    return inspection.problems


def convert(path: Path, out: Path, llm: Path | None = None) -> Weights:
    """All weights of the canonical model."""
    write_model(out, CheckpointPaths(visual=path, llm=llm))
    return weights_of(out)


def weights_of(out: Path) -> Weights:
    files = [path for path in out.rglob("*.safetensors") if "vision" not in path.parts]
    return {f"{path.parent.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def files_of(out: Path) -> dict[str, bytes]:
    """All files of the canonical model; those of forms that keep the order of tensors are the same to the byte."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def same(found: Weights, wanted: Weights) -> bool:
    return found.keys() == wanted.keys() and all(
        tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]) for name, tensor in found.items()
    )


@pytest.fixture(scope="module")
def state() -> State:
    return state_of(Archive.read(CLASSIC))


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("wanted")
    return convert(Archive.read(CLASSIC).write(folder), folder / "out")


def ckpt(state: State) -> Archive:
    archive = Archive.read(CLASSIC)
    archive.members[CKPT] = saved(state)
    return archive


def with_groups(state: State, groups: int) -> State:
    """The same model with more key/value heads, whose values are random; all heads have 24 rows."""
    chance = torch.Generator().manual_seed(groups)
    rows = (4 + 2 * groups) * 24
    return {
        name: torch.randn(rows, 96, generator=chance) if name.endswith(QKV) else tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("unpacked", [False, True], ids=["tar", "folder"])
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2)], ids=str)
def test_ranks_are_merged(tmp_path: Path, state: State, tensor: int, pipeline: int, *, unpacked: bool) -> None:
    groups = max(2, tensor)
    whole = with_groups(state, groups) if groups > 2 else state
    expected = convert(ckpt(whole).set_config("num_query_groups", groups).write(tmp_path), tmp_path / "expected")
    archive = forms.as_ranks(Archive.read(CLASSIC), whole, tensor=tensor, pipeline=pipeline)
    path = archive.set_config("num_query_groups", groups).write(tmp_path, "ranks.nemo")
    if unpacked:
        path = forms.unpack(archive, tmp_path / "ranks")
    assert same(convert(path, tmp_path / "out"), expected)
    if pipeline == 1:
        assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


UNFUSED = "self_attention.adapter_layer.lora_unfused_kqv_adapter", "mlp.adapter_layer.lora_unfused_hto4h_adapter"
DENSE = {
    "self_attention.adapter_layer.lora_dense_attention_adapter": (96, 96),
    "mlp.adapter_layer.lora_4htoh_adapter": (256, 96),
}


@pytest.mark.parametrize(
    "shapes",
    [
        {
            "self_attention.adapter_layer.lora_kqv_adapter": (96, 192),
            "mlp.adapter_layer.lora_hto4h_adapter": (96, 512),
            **DENSE,
        },
        {
            f"{UNFUSED[0]}.q_adapter": (96, 96),
            f"{UNFUSED[0]}.k_adapter": (96, 48),
            f"{UNFUSED[0]}.v_adapter": (96, 48),
            f"{UNFUSED[1]}.gate_adapter": (96, 256),
            f"{UNFUSED[1]}.up_adapter": (96, 256),
            **DENSE,
        },
    ],
    ids=["fused", "unfused"],
)
def test_adapters_of_several_ranks_are_merged(tmp_path: Path, state: State, shapes: dict[str, tuple[int, int]]) -> None:
    chance = torch.Generator().manual_seed(5)
    adapted = dict(state)
    for layer, (name, (inputs, outputs)) in product(range(LAYERS), shapes.items()):
        adapter = f"model.decoder.layers.{layer}.{name}"
        adapted[f"{adapter}.linear_in.weight"] = torch.randn(4, inputs, generator=chance)
        adapted[f"{adapter}.linear_out.weight"] = torch.randn(outputs, 4, generator=chance)
    expected = convert(ckpt(adapted).write(tmp_path), tmp_path / "expected")
    archive = forms.as_ranks(Archive.read(CLASSIC), adapted, tensor=2, pipeline=2)
    found = convert(archive.write(tmp_path, "ranks.nemo"), tmp_path / "out")
    assert same(found, expected)
    assert not same(found, convert(ckpt(state).write(tmp_path), tmp_path / "without"))


def test_a_tied_head_in_the_last_stage_is_the_embedding(tmp_path: Path, state: State) -> None:
    """Megatron keeps a copy of a tied embedding where the head is computed."""
    archive = Archive.read(CLASSIC).set_config("share_embeddings_and_output_weights", True)  # noqa: FBT003
    tied = {name: tensor for name, tensor in state.items() if "output_layer" not in name}
    archive = forms.as_ranks(archive, tied, tensor=2, pipeline=2)
    found = convert(archive.write(tmp_path), tmp_path / "out")
    assert "llm/lm_head.weight" not in found


@pytest.mark.parametrize("missing", ["tp_rank_01_pp_rank_001", "tp_rank_00_pp_rank_000"])
def test_missing_ranks_are_named(tmp_path: Path, state: State, missing: str) -> None:
    archive = forms.as_ranks(Archive.read(CLASSIC), state, tensor=2, pipeline=2)
    del archive.members[f"{missing}/model_weights.ckpt"]
    (problem,) = problems_of(archive.write(tmp_path))
    assert "saved by 4 ranks, and holds the weights of 3" in problem.problem


def test_ranks_that_all_are_missing_but_the_first_are_noticed(tmp_path: Path, state: State) -> None:
    archive = forms.as_ranks(Archive.read(CLASSIC), state, tensor=2, pipeline=1)
    del archive.members["mp_rank_01/model_weights.ckpt"]
    (problem,) = problems_of(archive.write(tmp_path))
    assert "saved by 2 ranks" in problem.problem
    assert "mp_rank_00" in problem.at


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda part: part.pop("model.decoder.final_layernorm.weight"), "only 1 of 2 ranks hold"),
        (lambda part: part.update({"model.output_layer.weight": torch.zeros(3, 96)}), "[256, 96], [3, 96] do not fit"),
    ],
)
def test_ranks_that_do_not_fit_together_are_refused(
    tmp_path: Path, state: State, change: Callable[[State], Any], says: str
) -> None:
    archive = forms.as_ranks(Archive.read(CLASSIC), state, tensor=2, pipeline=1)
    part = {name: forms.slice_of(name, tensor, 1, 2) for name, tensor in state.items()}
    change(part)
    archive.members["mp_rank_01/model_weights.ckpt"] = saved(part)
    (problem,) = problems_of(archive.write(tmp_path))
    assert problem.reason is Reason.CHECKPOINT_UNREADABLE
    assert says in problem.problem


def test_copies_that_differ_between_ranks_are_refused(tmp_path: Path, state: State) -> None:
    archive = forms.as_ranks(Archive.read(CLASSIC), state, tensor=2, pipeline=1)
    norm = "model.decoder.final_layernorm.weight"
    part = {name: forms.slice_of(name, tensor, 1, 2) for name, tensor in state.items()} | {norm: torch.zeros(96)}
    archive.members["mp_rank_01/model_weights.ckpt"] = saved(part)
    with pytest.raises(ProductError, match="different copies"):
        convert(archive.write(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("apart", [False, True], ids=["fast-swiglu", "swiglu"])
@pytest.mark.parametrize("ranks", [0, 1, 2])
def test_legacy_names_are_renamed(tmp_path: Path, state: State, wanted: Weights, ranks: int, *, apart: bool) -> None:
    archive = ckpt(forms.legacy_state(state, apart=apart))
    if ranks:
        del archive.members[CKPT]
        for rank in range(ranks):
            part = {name: forms.slice_of(name, tensor, rank, ranks) for name, tensor in state.items()}
            archive.members[f"mp_rank_{rank:02d}/model_weights.ckpt"] = saved(forms.legacy_state(part, apart=apart))
    archive.set_config("mcore_gpt", False)  # noqa: FBT003
    assert same(convert(archive.write(tmp_path), tmp_path / "out"), wanted)


def test_the_first_projectors_name_is_renamed(tmp_path: Path, state: State) -> None:
    linear = {name: tensor for name, tensor in state.items() if "mm_projector" not in name}
    prefix = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."
    linear |= {f"{prefix}weight": torch.randn(96, 64), f"{prefix}bias": torch.randn(96)}
    now = ckpt(linear).set_config("mm_cfg.mm_mlp_adapter_type", "linear").write(tmp_path)
    then = ckpt(forms.legacy_state(linear, first_projector=True)).set_config("mm_cfg.mm_mlp_adapter_type", "linear")
    found = convert(then.write(tmp_path, "then.nemo"), tmp_path / "out")
    assert same(found, convert(now, tmp_path / "expected"))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path, state: State) -> None:
    both = state | {"model.language_model.output_layer.weight": state["model.output_layer.weight"]}
    (problem,) = problems_of(ckpt(both).write(tmp_path))
    assert "are both model.output_layer.weight" in problem.problem


def odd_chunks(_name: str, tensor: torch.Tensor) -> tuple[int, ...]:
    """Cut with no regard to layers; the last chunks reach beyond the end."""
    return tuple(max(1, length * 2 // 3) for length in tensor.shape)


@pytest.mark.parametrize("unpacked", [False, True], ids=["tar", "folder"])
@pytest.mark.parametrize("chunks", [forms.whole_chunks, odd_chunks], ids=["as Megatron cuts", "any cut"])
def test_zarr_is_read(
    tmp_path: Path,
    state: State,
    wanted: Weights,
    chunks: Callable[[str, torch.Tensor], tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    unpacked: bool,
) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 1000)  # a row or two
    archive = forms.as_zarr(Archive.read(CLASSIC), forms.stacked(state), chunks)
    path = archive.write(tmp_path)
    if unpacked:
        path = forms.unpack(archive, tmp_path / "zarr")
    assert same(convert(path, tmp_path / "out"), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_zarr_holds_types_that_numpy_does_not_know(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) for name, tensor in state.items()}
    expected = convert(ckpt(half).write(tmp_path), tmp_path / "expected")
    path = forms.as_zarr(Archive.read(CLASSIC), forms.stacked(half)).write(tmp_path, "zarr.nemo")
    assert same(convert(path, tmp_path / "out"), expected)


def test_a_gzip_archive_and_a_folder_are_the_same(tmp_path: Path, wanted: Weights) -> None:
    archive = Archive.read(CLASSIC)
    shutil.copytree(CLIP, tmp_path / "clip")
    old = tmp_path / "old.nemo"
    old.write_bytes(gzip.compress(archive.to_bytes(), 1))
    assert same(convert(old, tmp_path / "out"), wanted)
    assert same(convert(forms.unpack(archive, tmp_path / "folder"), tmp_path / "again"), wanted)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")


def zarr_of(state: State) -> Archive:
    return forms.as_zarr(Archive.read(CLASSIC), forms.stacked(state))


NORM = "model_weights/model.decoder.final_layernorm.weight"


def edit_array(archive: Archive, folder: str, **changes: object) -> Archive:
    described = json.loads(archive.members[f"{folder}/.zarray"]) | changes
    archive.members[f"{folder}/.zarray"] = json.dumps(described).encode()
    return archive


def test_a_chunk_without_a_file_has_the_fill_value(tmp_path: Path, state: State) -> None:
    archive = edit_array(zarr_of(state), NORM, fill_value=0.5)
    del archive.members[f"{NORM}/0"]
    found = convert(archive.write(tmp_path), tmp_path / "out")
    assert torch.equal(found["llm/model.norm.weight"], torch.full((96,), 0.5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"compressor": {"id": "blosc"}}, "compressor"),
        ({"filters": [{"id": "delta"}]}, "filters"),
        ({"order": "F"}, "order"),
        ({"zarr_format": 3}, "zarr_format"),
        ({"dtype": ">f4"}, ">f4"),
        ({"dtype": "|O"}, "not those of weights"),
        ({"chunks": [0]}, "chunks"),
        ({"chunks": [96, 1]}, "not those of weights"),
        ({"chunks": [95]}, "384 bytes, where chunks of this tensor have 380"),
        ({"shape": [97]}, "model.norm.weight"),
        ({"shape": [-1]}, "shape"),
        ({"shape": [2**40]}, "bytes of weights"),
        ({"dimension_separator": "~"}, "dimension_separator"),
    ],
)
def test_arrays_that_are_not_megatrons_are_refused(
    tmp_path: Path, state: State, changes: dict[str, object], says: str
) -> None:
    path = edit_array(zarr_of(state), NORM, **changes).write(tmp_path)
    with pytest.raises(ProductError, match=re.escape(says)) as caught:
        convert_or_raise(path, tmp_path / "out")
    assert "model.nemo: " in caught.value.failure.at


def convert_or_raise(path: Path, out: Path) -> None:
    """What the inspection reports, or the conversion raises."""
    for problem in problems_of(path):
        raise ProductError(problem.reason, at=problem.at, problem=problem.problem, remedy=problem.remedy)
    convert(path, out)


def test_a_missing_chunk_is_no_weight(tmp_path: Path, state: State) -> None:
    archive = zarr_of(state)
    del archive.members[f"{NORM}/0"]
    with pytest.raises(ProductError, match="no fill value"):
        convert(archive.write(tmp_path), tmp_path / "out")


def test_weights_that_are_fill_values_for_the_most_part_are_refused(tmp_path: Path, state: State) -> None:
    """A copy that lost its chunks must not become a model of zeros."""
    archive = zarr_of(state)
    for name in [name for name in archive.members if name.endswith(".zarray")]:
        edit_array(archive, name.removesuffix("/.zarray"), fill_value=0)
    archive.members = {
        name: data for name, data in archive.members.items() if not name[-1].isdigit() or "embedding" in name
    }
    (problem,) = problems_of(archive.write(tmp_path))
    assert "bytes of weights" in problem.problem


def tower() -> State:
    return {f"{forms.TOWER}{name}": tensor for name, tensor in load_file(CLIP / "model.safetensors").items()}


def nemo2_state(state: State, *, own_projector: bool = False) -> State:
    named = {forms.nemo2_name(name, own_projector=own_projector): tensor for name, tensor in state.items()}
    beside = {"optimizer.state.exp_avg.module.language_model.decoder.final_layernorm.weight": torch.ones(96)}
    return forms.stacked(named) | beside


@pytest.mark.parametrize("own_projector", [False, True], ids=["Sequential", "Megatron's own projector"])
@pytest.mark.parametrize("unpacked", [False, True], ids=["tar", "folder"])
def test_a_nemo_2_checkpoint_is_the_same(
    tmp_path: Path, state: State, wanted: Weights, *, unpacked: bool, own_projector: bool
) -> None:
    archive = forms.as_nemo2(
        Archive.read(CLASSIC), nemo2_state(state | tower(), own_projector=own_projector), forms.VISUAL
    )
    path = archive.write(tmp_path)
    if unpacked:
        path = forms.unpack(archive, tmp_path / "nemo2")
    assert same(convert(path, tmp_path / "out"), wanted)
    assert torch.equal(
        load_file(tmp_path / "out/vision/model.safetensors")["vision_model.post_layernorm.weight"],
        load_file(CLIP / "model.safetensors")["vision_model.post_layernorm.weight"],
    )


def test_a_nemo_2_checkpoint_written_by_torch_is_the_same(tmp_path: Path, state: State, wanted: Weights) -> None:
    archive = forms.as_nemo2(Archive.read(CLASSIC), {}, forms.VISUAL)
    archive.write(tmp_path)
    archive.members = {name: data for name, data in archive.members.items() if not name.startswith("weights/")}
    folder = forms.unpack(archive, tmp_path / "nemo2")
    nemo_writer.write_distributed(folder / "weights", nemo2_state(state | tower()))
    assert same(convert(folder, tmp_path / "out"), wanted)


def test_a_nemo_2_language_model_goes_with_a_projector_of_nemo_1(tmp_path: Path, state: State, wanted: Weights) -> None:
    text = {name.replace("model.", "module.", 1): t for name, t in state.items() if "mm_projector" not in name}
    llm = forms.as_nemo2(Archive.read(CLASSIC), forms.stacked(text), forms.LANGUAGE).write(tmp_path, "llm.nemo")
    visual = keep_tensors(Archive.read(CLASSIC), lambda name: "mm_projector" in name).write(tmp_path)
    assert problems_of(visual, llm) == ()
    assert same(convert(visual, tmp_path / "out", llm), wanted)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"activation_func": {"_target_": "torch.tanh"}}, "activation_func: is 'tanh' with a gate"),
        ({"normalization": "BatchNorm"}, "normalization: is 'BatchNorm'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"gated_linear_unit": False}, "activation_func: is 'silu' without a gate"),
    ],
)
def test_a_context_of_an_unknown_model_is_refused(
    tmp_path: Path, state: State, changes: dict[str, object], says: str
) -> None:
    config = forms.VISUAL | {"language_transformer_config": forms.LANGUAGE | changes}
    (problem,) = problems_of(forms.as_nemo2(Archive.read(CLASSIC), nemo2_state(state), config).write(tmp_path))
    assert problem.at.startswith("model.nemo: context/model.yaml")
    assert says in str(problem)


@pytest.mark.parametrize("changes", [{"vision_model_type": "siglip"}, {"img_h": None}], ids=["siglip", "another"])
def test_another_tower_of_megatrons_is_named(tmp_path: Path, state: State, changes: dict[str, object]) -> None:
    """Megatron's SigLIP puts its last norm behind the layer that is taken, which no tower of transformers does."""
    described = {"_target_": "megatron.CLIPViTConfig", "img_h": 48} | changes
    config = forms.VISUAL | {"vision_transformer_config": {k: v for k, v in described.items() if v is not None}}
    (problem,) = problems_of(forms.as_nemo2(Archive.read(CLASSIC), nemo2_state(state), config).write(tmp_path))
    assert "CLIPViTConfig" in problem.problem


def experts(form: str) -> State:
    """Four experts in each of two layers, stacked as all distributed forms have them."""
    prefix = f"{'module' if form == 'nemo2' else 'model'}.decoder.layers.mlp.experts.experts."
    return {
        f"{prefix}linear_fc1.weight": torch.randn(2, 4, 8, 4),
        f"{prefix}linear_fc2.weight": torch.randn(2, 4, 4, 4),
    }


@pytest.mark.parametrize("form", ["zarr", "torch_dist", "nemo2"])
def test_experts_are_given_out_one_by_one(tmp_path: Path, form: str) -> None:
    stacked = experts(form)
    folder = tmp_path / "x"
    if form == "zarr":
        forms.unpack(forms.as_zarr(Archive({}), stacked, odd_chunks), folder)
    else:
        folder.mkdir()
        nemo_writer.write_distributed(folder / "model_weights", stacked)
    source = NamedSource(open_distributed(DirectoryMembers(folder), "model_weights"), "x")
    assert len(source.infos()) == 2 * 4 * 2
    for name, tensor in stacked.items():
        for layer, expert in product(range(2), range(4)):
            one = f"model.decoder.layers.{layer}.mlp.experts.local_experts.{expert}.{name.rpartition('experts.')[2]}"
            assert torch.equal(torch.from_numpy(source.read(one)), tensor[layer, expert])


def test_the_page_says_which_model_is_read_in_which_form() -> None:
    page = Path(__file__).resolve().parents[3] / "docs/reference/checkpoints.md"
    assert upstream.table() in page.read_text()
