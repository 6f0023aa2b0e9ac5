"""CLIP towers of NeMo's own, of NeMo 1 and of Megatron-core, against transformers' CLIP with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tiny import nemo_writer

from multimodal_api.build import ExitCode
from multimodal_builder.main import main
from multimodal_recipes.recipe import FrameResize
from support import forms, towers
from support.archives import CKPT, Archive
from support.states import saved, state_of
from support.vision_cases import (
    HIDDEN,
    TOLERANCE,
    WRONG,
    Case,
    convert,
    difference,
    encode,
    pixels_for,
    projector_state,
    reference,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import CLIPVisionModel

pytestmark = pytest.mark.parity

CLIP = towers.make_clip
NEMO_CASES = {
    "one behind the other": (Case(CLIP, "mlp_downsample", rows=9), True),
    "head by head": (Case(CLIP, layer=-1), False),
    "one behind the other, trained": (Case(CLIP, trained=True), True),
    "head by head, trained, embedding": (Case(CLIP, "linear", layer=-4, trained=True), False),
}


def write_nemo(folder: Path, case: Case, tower: CLIPVisionModel, state: dict[str, Tensor], *, legacy: bool) -> Path:
    """A NeVA around NeMo's own CLIP."""
    archive = Archive.read(write(folder, replace(case, trained=False), tower, state))
    archive.set_config("mm_cfg.vision_encoder.from_hf", value=False)
    archive.set_config("mm_cfg.vision_encoder.from_pretrained", "/training/machine/clip.nemo")
    archive.set_config("mm_cfg.crop_size", [case.image_size, case.image_size])
    clip = towers.nemo_clip_archive(tower, legacy=legacy)
    if case.trained:
        trained = towers.nemo_clip_state(tower, legacy=legacy)
        weights = state_of(archive) | {nemo_writer.TOWER + name: tensor for name, tensor in trained.items()}
        archive.members[CKPT] = saved(weights)
        clip.members[CKPT] = saved({})
    clip.write(folder, "clip.nemo")
    return archive.write(folder)


@pytest.mark.parametrize(("case", "legacy"), NEMO_CASES.values(), ids=NEMO_CASES.keys())
def test_nemos_own_clip_is_transformers(tmp_path: Path, case: Case, *, legacy: bool) -> None:
    tower, state = towers.make_clip(case.image_size), projector_state(case.projector)
    recipe = convert(write_nemo(tmp_path, case, tower, state, legacy=legacy), tmp_path / "out")
    pixels = pixels_for(case)
    found = encode(tmp_path / "out", recipe, pixels)
    assert found.shape == (2, case.rows, HIDDEN)
    assert difference(found, reference(case, tower, state, pixels)) <= TOLERANCE


@pytest.mark.parametrize("trained", [True, False], ids=["in the checkpoint", "beside it"])
@pytest.mark.parametrize("legacy", [True, False], ids=["one behind the other", "head by head"])
def test_a_clip_of_several_ranks_is_the_same(tmp_path: Path, *, legacy: bool, trained: bool) -> None:
    case = Case(CLIP, trained=trained)
    tower, state = towers.make_clip(case.image_size), projector_state(case.projector)
    path = write_nemo(tmp_path, case, tower, state, legacy=legacy)
    cut, at = (path, tmp_path) if trained else (tmp_path / "clip.nemo", tmp_path)
    archive = Archive.read(cut)
    forms.as_ranks(archive, state_of(archive), tensor=2, pipeline=1, thirds=legacy).write(at, cut.name)
    if legacy and trained:
        assert main(["inspect", str(path)]) == ExitCode.REFUSED
        return
    recipe = convert(path, tmp_path / "out")
    pixels = pixels_for(case)
    assert difference(encode(tmp_path / "out", recipe, pixels), reference(case, tower, state, pixels)) <= TOLERANCE


def write_megatron(folder: Path, case: Case, tower: CLIPVisionModel, state: dict[str, Tensor], **options: Any) -> Path:
    """A NeMo 2 checkpoint around Megatron-core's CLIP; `options` change its configuration, or are `last_norm`."""
    archive = Archive.read(write(folder, case, tower, state))
    ours = towers.megatron_clip_state(tower, last_norm=options.pop("last_norm", False))
    weights = state_of(archive) | {nemo_writer.TOWER + name: tensor for name, tensor in ours.items()}
    config = {
        **forms.VISUAL,
        "vision_feature_layer": case.layer,
        "vision_transformer_config": towers.megatron_clip_config(tower) | options,
        "vision_projection_config": {"projector_type": case.projector},
    }
    named = {forms.nemo2_name(name): tensor for name, tensor in weights.items()}
    return forms.as_nemo2(archive, forms.stacked(named), config).write(folder)


@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize(("layer", "projector", "rows"), [(-1, "mlp2x_gelu", 36), (-2, "vila_downsample_mlp", 9)])
def test_megatrons_clip_is_transformers(
    tmp_path: Path, layer: int, projector: str, rows: int, *, last_norm: bool
) -> None:
    case = Case(CLIP, projector, layer=layer, rows=rows)
    tower, state = towers.make_clip(case.image_size), projector_state(case.projector)
    path = write_megatron(tmp_path, case, tower, state, last_norm=last_norm)
    recipe = convert(path, tmp_path / "out")
    assert recipe.seeing().tokens_per_image == rows
    assert recipe.seeing().preprocessing.resize is FrameResize.SHORTEST_EDGE_CROP
    pixels = pixels_for(case)
    assert difference(encode(tmp_path / "out", recipe, pixels), reference(case, tower, state, pixels)) <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"add_class_token": False}, "class_token_length is 0, not 1"),
        ({"class_token_len": 8}, "class_token_length is 8, not 1"),
        ({"layernorm_zero_centered_gamma": True}, "normalization is 'layernorm1p'"),
        ({"gated_linear_unit": True}, "activation is 'approx-gelu with a gate'"),
        ({"activation_func": {"_target_": "torch.tanh"}}, "activation is 'tanh'"),
        ({"num_layers": None}, "num_layers is missing"),
    ],
)
def test_a_clip_of_megatrons_that_transformers_cannot_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], says: str
) -> None:
    case = Case(CLIP)
    path = write_megatron(tmp_path, case, towers.make_clip(48), projector_state(case.projector), **changes)
    assert main(["convert", str(path), str(tmp_path / "out")]) == ExitCode.REFUSED
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("legacy", [True, False])
def test_the_other_order_of_queries_keys_and_values_is_seen(tmp_path: Path, *, legacy: bool) -> None:
    case, _ = NEMO_CASES["head by head"]
    tower, state = towers.make_clip(case.image_size), projector_state(case.projector)
    path = write_nemo(tmp_path, case, tower, state, legacy=legacy)
    towers.nemo_clip_archive(tower, legacy=legacy, megatron_legacy=not legacy).write(tmp_path, "clip.nemo")
    recipe = convert(path, tmp_path / "out")
    pixels = pixels_for(case)
    assert difference(encode(tmp_path / "out", recipe, pixels), reference(case, tower, state, pixels)) > WRONG


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_token_length": 8}, "class_token_length is 8, not 1"),
        ({"class_token_length": None}, "class_token_length is None, not 1"),
        ({"preprocess_layernorm": False}, "preprocess_layernorm is False, not True"),
        ({"normalization": "layernorm1p"}, "'layernorm1p', not 'layernorm'"),
        ({"activation": "swiglu", "layerscale": True}, "layerscale is True"),
        ({"kv_channels": 32}, "kv_channels is 32"),
        ({"num_layers": 2}, "which the model does not have"),
        ({"num_layers": 4}, "missing: vision_model.encoder.layers.3."),
        ({"img_h": 56, "img_w": 56}, "mm_cfg.crop_size"),
        ({"num_layers": None}, "vision.num_layers"),
    ],
)
def test_a_clip_of_nemo_that_transformers_cannot_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], says: str
) -> None:
    case, legacy = NEMO_CASES["head by head"]
    tower = towers.make_clip(case.image_size)
    path = write_nemo(tmp_path, case, tower, projector_state(case.projector), legacy=legacy)
    towers.nemo_clip_archive(tower, legacy=legacy, **changes).write(tmp_path, "clip.nemo")
    assert main(["convert", str(path), str(tmp_path / "out")]) == ExitCode.REFUSED
    assert says in " ".join(capsys.readouterr().err.split())
