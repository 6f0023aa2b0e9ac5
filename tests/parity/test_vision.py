"""Towers and projectors, from archives to rows of prompt embeddings, against transformers' towers and plain arithmetic.

The archives are the tiny NeVA's, projector and tower replaced; torch reads and writes them, no code of the product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny import nemo_writer
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from multimodal_api.build import ExitCode
from multimodal_api.families import Family
from multimodal_builder.main import main
from multimodal_modeling.model import read_recipe
from multimodal_modeling.projector import JoinSquares
from multimodal_modeling.vision import MediaEncoder
from multimodal_recipes.images import preprocess
from multimodal_recipes.recipe import FrameResize
from support import forms, towers
from support.archives import CKPT, CLASSIC, Archive
from support.states import saved, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from multimodal_recipes.recipe import Recipe

pytestmark = pytest.mark.parity

HIDDEN = 96  # of the tiny NeVA's language model
TOLERANCE = 1e-5
"""Largest difference, relative to the largest value."""
WRONG = 1e-2
"""A mistake moves values by more than this."""

Tower = CLIPVisionModel | SiglipVisionModel


@dataclass(frozen=True)
class Case:
    """One archive."""

    make: Callable[[int], Tower]
    projector: str = "mlp2x_gelu"
    image_size: int = 48
    layer: int = -2
    feature: str = "patch"
    class_tokens: int = 1
    form: str = "old"
    """Of the tower's folder."""
    trained: bool = False
    """Whether the archive holds the tower; then the folder holds another one."""
    rows: int = 36


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


def projector_state(kind: str) -> dict[str, Tensor]:
    """NeMo's names behind `mm_projector`, with random values."""
    width = towers.WIDTH
    match kind:
        case "linear":
            sizes = {"": (HIDDEN, width)}
        case "mlp_downsample" | "vila_downsample_mlp":
            sizes = {"2.": (HIDDEN, 4 * width), "4.": (HIDDEN, HIDDEN)}
        case _:
            sizes = {f"{2 * index}.": (HIDDEN, HIDDEN if index else width) for index in range(int(kind[3]))}
    generator = torch.Generator().manual_seed(9)
    state = {}
    for prefix, size in sizes.items():
        state[f"{prefix}weight"] = torch.randn(size, generator=generator) * 0.1
        state[f"{prefix}bias"] = torch.randn(size[0], generator=generator)
    if "downsample" in kind:
        state |= {f"1.{name}": torch.randn(4 * width, generator=generator) for name in ("weight", "bias")}
    return state


def project(kind: str, state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """A projector's arithmetic on the [tokens, width] of one picture."""

    def linear(x: Tensor, prefix: str) -> Tensor:
        return x @ state[f"{prefix}weight"].T + state[f"{prefix}bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    if kind == "linear":
        return linear(tokens, "")
    if "downsample" in kind:
        x = join(tokens, rows_first=kind == "vila_downsample_mlp")
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
        x = linear(x * state["1.weight"] + state["1.bias"], "2.")
        return linear(gelu(x), "4.")
    for index in range(int(kind[3])):
        tokens = linear(gelu(tokens) if index else tokens, f"{2 * index}.")
    return tokens


def join(tokens: Tensor, *, rows_first: bool) -> Tensor:
    """The 2 by 2 squares of a picture, line by line or, as NeMo 1 has them, column by column."""
    edge = int(len(tokens) ** 0.5)
    nothing = torch.zeros(tokens.shape[1])

    def at(row: int, column: int) -> Tensor:
        return tokens[row * edge + column] if row < edge and column < edge else nothing

    squares = []
    for outer in range(0, edge, 2):
        for inner in range(0, edge, 2):
            row, column = (outer, inner) if rows_first else (inner, outer)
            four = [at(row, column), at(row, column + 1), at(row + 1, column), at(row + 1, column + 1)]
            squares.append(torch.cat(four))
    return torch.stack(squares)


@torch.inference_mode()
def reference(case: Case, tower: Tower, state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[case.layer]
    dropped = case.class_tokens if case.feature == "patch" else 0
    return torch.stack([project(case.projector, state, picture[dropped:]) for picture in features])


def write(folder: Path, case: Case, tower: Tower, state: dict[str, Tensor]) -> Path:
    archive = Archive.read(CLASSIC)
    archive.set_config("mm_cfg.mm_mlp_adapter_type", case.projector)
    for key, value in {
        "from_pretrained": "tower",
        "patch_dim": towers.PATCH,
        "hidden_size": towers.WIDTH,
        "crop_size": [case.image_size, case.image_size],
        "vision_select_layer": case.layer,
        "vision_select_feature": case.feature,
        "class_token_length": case.class_tokens,
        "freeze": not case.trained,
    }.items():
        archive.set_config(f"mm_cfg.vision_encoder.{key}", value)
    weights = {name: value for name, value in state_of(archive).items() if "mm_projector" not in name}
    weights |= {nemo_writer.PROJECTOR + name: tensor for name, tensor in state.items()}
    other = tower
    if case.trained:
        weights |= {nemo_writer.TOWER + name: tensor for name, tensor in towers.names_of(tower).items()}
        other = AutoModel.from_config(tower.config)
    archive.members[CKPT] = saved(weights)
    path = archive.write(folder)
    towers.write_folder(folder / "tower", other, case.form)
    return path


def convert(path: Path, out: Path, *options: str) -> Recipe:
    assert main(["convert", str(path), str(out), *options]) == ExitCode.OK
    return read_recipe(out)


def encode(out: Path, recipe: Recipe, pixels: Tensor) -> Tensor:
    encoder = MediaEncoder.load(out, recipe.seeing(), dtype=torch.float32, device=torch.device("cpu"))
    return encoder.encode(pixels)


def pixels_for(case: Case) -> Tensor:
    return torch.randn(2, 3, case.image_size, case.image_size, generator=torch.Generator().manual_seed(2))


def difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


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
