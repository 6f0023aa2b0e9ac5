"""Towers and projectors, from archives to rows of prompt embeddings, against transformers and plain arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
)

from multimodal_api.build import ExitCode
from multimodal_api.families import Family
from multimodal_builder.main import main
from multimodal_modeling.projector import JoinSquares
from multimodal_recipes.images import preprocess
from multimodal_recipes.recipe import FrameResize
from support import towers
from support.archives import Archive
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
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

CLIP, SIGLIP = towers.make_clip, towers.make_siglip
CASES = {
    "clip": Case(CLIP),
    "clip, one layer": Case(CLIP, "linear", form="bin"),
    "clip, three layers, deeper": Case(CLIP, "mlp3x_gelu", layer=-1, form="tower"),
    "clip, class token kept": Case(CLIP, feature="cls_patch", rows=37, form="whole"),
    "clip, joined": Case(CLIP, "mlp_downsample", rows=9, form="shards"),
    "clip, joined, odd": Case(CLIP, "mlp_downsample", image_size=40, layer=1, rows=9),
    "clip, trained": Case(CLIP, "mlp_downsample", trained=True, rows=9),
    "siglip": Case(SIGLIP, class_tokens=0, form="tower"),
    "siglip, whole": Case(SIGLIP, feature="cls_patch", form="whole"),
    "siglip, joined, odd": Case(SIGLIP, "mlp_downsample", image_size=40, feature="cls_patch", rows=9, form="bin"),
    "siglip, first patch dropped": Case(SIGLIP, "mlp1x_gelu", rows=35, form="shards"),
    "siglip, trained": Case(SIGLIP, "mlp_downsample", image_size=40, feature="cls_patch", trained=True, rows=9),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rows_of_pictures_are_those_of_transformers_towers(tmp_path: Path, case: Case) -> None:
    tower, state = case.make(case.image_size), projector_state(case.projector)
    recipe = convert(write(tmp_path, case, tower, state), tmp_path / "out")
    assert recipe.seeing().tokens_per_image == case.rows
    pixels = pixels_for(case)
    found = encode(tmp_path / "out", recipe, pixels)
    assert found.shape == (2, case.rows, HIDDEN)
    assert difference(found, reference(case, tower, state, pixels)) <= TOLERANCE


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_canonical_tower_is_transformers_own(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    tower = case.make(case.image_size)
    convert(write(tmp_path, case, tower, projector_state(case.projector)), tmp_path / "out")
    loaded, info = AutoModel.from_pretrained(tmp_path / "out" / "vision", output_loading_info=True)
    assert not any(info.values()), info
    assert type(loaded) is type(tower)


@pytest.mark.parametrize("template", ["v1", "llama_3"])
def test_a_vila_sees_through_siglip_and_joined_squares(tmp_path: Path, template: str) -> None:
    """As NeMo's converter makes it, with VITA's configuration file: of videos, and `resize` from VILA's own."""
    case = CASES["siglip, joined, odd"]
    tower, state = case.make(case.image_size), projector_state(case.projector)
    archive = Archive.read(write(tmp_path, case, tower, state))
    archive.set_config("data.image_aspect_ratio", "resize").set_config("data.media_type", "video")
    archive.set_config("data.conv_template", template).set_config("data.num_frames", 256)
    recipe = convert(archive.write(tmp_path), tmp_path / "out", "--type", "vila")
    vision = recipe.seeing()
    assert (recipe.family, vision.video, vision.tokens_per_image) == (Family.VILA, None, case.rows)
    how = vision.preprocessing
    assert (how.resize, how.image_size, how.resample) == (FrameResize.SQUASH, case.image_size, 3)
    pixels = pixels_for(case)
    assert difference(encode(tmp_path / "out", recipe, pixels), reference(case, tower, state, pixels)) <= TOLERANCE


@pytest.mark.parametrize("aspect", ["square", "resize"])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_canonical_processor_makes_our_pixels(tmp_path: Path, name: str, aspect: str) -> None:
    case = CASES[name]
    archive = Archive.read(write(tmp_path, case, case.make(case.image_size), projector_state(case.projector)))
    archive.set_config("data.image_aspect_ratio", aspect)
    recipe = convert(archive.write(tmp_path), tmp_path / "out")
    kind = CLIPImageProcessorPil if name == "clip" else SiglipImageProcessorPil
    picture = np.random.default_rng(4).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    theirs = kind.from_pretrained(tmp_path / "out" / "vision")(images=picture, return_tensors="np")["pixel_values"]
    assert np.array_equal(preprocess(picture[None], recipe.seeing().preprocessing, at="x"), np.asarray(theirs))


def row_major(self: Any, features: Tensor) -> Tensor:
    """The squares of a picture line by line, as anybody would think."""
    joined = JOIN(self, features)
    edge = int(joined.shape[-2] ** 0.5)
    return joined.unflatten(-2, (edge, edge)).transpose(-3, -2).flatten(-3, -2)


def scattered(self: Any, features: Tensor) -> Tensor:
    """The four tokens of a square in column order."""
    joined = JOIN(self, features).unflatten(-1, (4, -1))
    return joined[..., [0, 2, 1, 3], :].flatten(-2)


JOIN = JoinSquares.forward


@pytest.mark.parametrize("mistake", [row_major, scattered])
@pytest.mark.parametrize("name", ["clip, joined", "siglip, joined, odd"])
def test_another_order_of_squares_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mistake: Callable[..., Tensor]
) -> None:
    """Trap 4: all shapes fit, and every picture is described, wrongly."""
    case = CASES[name]
    tower, state = case.make(case.image_size), projector_state(case.projector)
    recipe = convert(write(tmp_path, case, tower, state), tmp_path / "out")
    monkeypatch.setattr("multimodal_modeling.projector.JoinSquares.forward", mistake)
    pixels = pixels_for(case)
    assert difference(encode(tmp_path / "out", recipe, pixels), reference(case, tower, state, pixels)) > WRONG


@pytest.mark.parametrize("change", [{"select_layer": -1}, {"class_token_length": 0}], ids=["layer", "class token"])
@pytest.mark.parametrize("name", ["clip", "siglip, first patch dropped"])
def test_another_layer_or_token_is_seen(tmp_path: Path, name: str, change: dict[str, int]) -> None:
    """Trap 4: the removed exporter always took layer -2, and kept the class token."""
    case = CASES[name]
    tower, state = case.make(case.image_size), projector_state(case.projector)
    recipe = convert(write(tmp_path, case, tower, state), tmp_path / "out")
    wrong = recipe.model_copy(update={"vision": recipe.seeing().model_copy(update=change)})
    pixels = pixels_for(case)
    found = encode(tmp_path / "out", wrong, pixels)[:, : case.rows]
    assert difference(found, reference(case, tower, state, pixels)) > WRONG


@pytest.mark.parametrize("name", ["clip, trained", "siglip, trained"])
def test_a_trained_tower_that_is_ignored_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Trap 4: the removed exporter took the tower that training started from."""
    case = CASES[name]
    tower, state = case.make(case.image_size), projector_state(case.projector)
    path = write(tmp_path, case, tower, state)
    monkeypatch.setattr("multimodal_builder.towers.ARCHIVE_PREFIX", "nowhere.")
    pixels = pixels_for(case)
    recipe = convert(path, tmp_path / "out")
    assert difference(encode(tmp_path / "out", recipe, pixels), reference(case, tower, state, pixels)) > WRONG


@pytest.mark.parametrize(("name", "strategy"), [("clip", "default"), ("siglip", "full"), ("siglip, whole", "full")])
def test_the_merged_folder_sees_what_we_see(tmp_path: Path, name: str, strategy: str) -> None:
    case = CASES[name]
    tower, state = case.make(case.image_size), projector_state(case.projector)
    recipe = convert(write(tmp_path, case, tower, state), tmp_path / "out", "--layout", "llava")
    merged, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out" / "llava", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    assert merged.config.vision_feature_select_strategy == strategy
    assert merged.config.image_seq_length == case.rows == recipe.seeing().tokens_per_image
    pixels = pixels_for(case)
    with torch.inference_mode():
        found = merged.eval().get_image_features(pixel_values=pixels).pooler_output
    assert difference(torch.stack(list(found)), reference(case, tower, state, pixels)) <= TOLERANCE


@pytest.mark.parametrize("name", ["clip, one layer", "siglip, joined, odd"])
def test_what_llava_has_no_place_for_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    path = write(tmp_path, case, case.make(case.image_size), projector_state(case.projector))
    assert main(["convert", str(path), str(tmp_path / "out"), "--layout", "llava"]) == ExitCode.REFUSED
    assert f"projector {case.projector}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
