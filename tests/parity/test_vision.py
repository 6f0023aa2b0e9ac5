"""Towers and projectors, from archives to rows of prompt embeddings, against transformers and plain arithmetic."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tiny import nemo_writer
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
)

from multimodal_api.build import ExitCode
from multimodal_api.families import Family
from multimodal_builder.main import main
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes.images import preprocess
from multimodal_recipes.recipe import FrameResize
from support import towers, upstream
from support.archives import CLASSIC, Archive
from support.megatron_writer import write_state
from support.original_folders import Whole, make_whole
from support.original_folders import projector_state as original_state
from support.vision_cases import (
    HIDDEN,
    TOLERANCE,
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

    from support.states import State

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


VOCAB = 500  # of the tiny NeVA's tokenizer


@cache
def vila() -> Whole:
    kind = "mlp_downsample"
    return make_whole(kind, siglip=True, feature="cls_patch", edge=40, rows=VOCAB, stretched=4.0, groups=4)


def vila_archive(whole: Whole) -> tuple[Archive, State]:
    """The archive that NeMo's converter makes of it with VITA's configuration file, and its weights."""
    archive, _ = upstream.read_classic(CLASSIC)
    llm = whole.llm.config
    encoder = {
        "from_pretrained": "tower",
        "crop_size": [40, 40],
        "patch_dim": towers.PATCH,
        "vision_select_feature": whole.feature,
    }
    config = archive.config()
    config["mm_cfg"] |= {"mm_mlp_adapter_type": "mlp_downsample"}
    config["mm_cfg"]["vision_encoder"] |= encoder
    archive.replace_config(
        config
        | {
            "hidden_size": llm.hidden_size,
            "ffn_hidden_size": llm.intermediate_size,
            "num_attention_heads": llm.num_attention_heads,
            "num_query_groups": llm.num_key_value_heads,
            "rotary_base": llm.rope_parameters["rope_theta"],
            "seq_len_interpolation_factor": llm.rope_parameters["factor"],
            "layernorm_epsilon": llm.rms_norm_eps,
        }
    )
    tower = {nemo_writer.TOWER + name: tensor for name, tensor in towers.names_of(whole.tower).items()}
    return archive, write_state(whole.llm, local=False) | original_state(
        whole, "mlp_downsample", nemo_writer.PROJECTOR
    ) | tower


@pytest.mark.parametrize("form", upstream.forms_of("vila"))
def test_every_form_of_a_vila_gives_the_logits_of_its_parts(tmp_path: Path, form: str) -> None:
    """SigLIP, trained, odd squares joined, and a Llama whose positions are interpolated."""
    whole = vila()
    towers.write_folder(tmp_path / "tower", AutoModel.from_config(whole.tower.config), "tower")
    archive, state = vila_archive(whole)
    paths = upstream.FORMS[form].write(archive, state, tmp_path)
    apart = () if paths.llm is None else ("--llm", str(paths.llm))
    recipe = convert(paths.visual, tmp_path / "out", "--type", "vila", *apart)
    served = MultimodalModel.load(tmp_path / "out", dtype=torch.float32, device=torch.device("cpu"))
    before, after = range(20, 40), range(100, 450)
    pixels = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    rows = recipe.seeing().tokens_per_image
    at = range(len(before), len(before) + rows)
    with torch.inference_mode():
        media = served.media.encode(pixels).flatten(0, 1)
        embeddings = served.prompt_embeddings([*before, *[0] * rows, *after], at, media)
        found = served.llm.logits(embeddings[None], served.llm.new_cache())[0, :, :VOCAB]
    wanted = whole.scores([*before], pixels, [*after], joined=True, by_line=False)
    assert difference(found, wanted) <= TOLERANCE


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
