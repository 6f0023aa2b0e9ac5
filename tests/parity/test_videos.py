"""Video families, from a NeMo archive to logits, against NeMo's training forward: loops over Hugging Face parts.

The reference reads the text that NeMo's dataset makes of `<video>`, with SentencePiece, embeds it, and puts features
over the placeholders as NeMo's embedding does. It shares nothing with the recipe, its layouts or the arrangement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sentencepiece
import torch
from tiny import nemo_writer
from tiny.neva import model as tiny
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from multimodal_api.build import Outcome
from multimodal_api.engine import Limits
from multimodal_api.families import Family
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.progress import Tracker
from multimodal_builder.stages import run_build
from multimodal_builder.store import Store
from multimodal_modeling.model import MultimodalModel, read_recipe
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.tokenizer import Tokenizer
from support import upstream
from support.archives import CLASSIC, Archive
from support.builds import request_for
from support.conversion import write_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

FRAMES = 6
SAMPLE_FRAMES = 4
GROUPS = 4
TOLERANCE = 1e-5
"""Largest difference of logits in float32, in parts of the largest logit."""
WRONG = 1e-2
"""A mistake moves logits by more than this part."""
QUESTION = "When does the red circle move, and when is it left of the blue square? " * 6
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
START, PATCH, END, VIDEO_START, VIDEO_END = (f"<extra_id_{number}>" for number in (4, 3, 5, 8, 9))


@dataclass(frozen=True)
class Case:
    """One family's configuration, and a video."""

    family: Family
    arch: str = ""
    start_end: bool = False
    total: int = FRAMES
    """Frames of the video."""

    @property
    def config(self) -> dict[str, Any]:
        lita = {
            "mm_cfg.use_lita": True,
            "mm_cfg.lita": {
                "lita_video_arch": self.arch,
                "visual_token_format": "im_vid_start_end" if self.arch == "temporal_all_resolution" else "v1",
                "sample_frames": SAMPLE_FRAMES,
            },
        }
        return {
            "data.media_type": "video",
            "data.num_frames": FRAMES,
            "data.conv_template": "v1",
            "num_query_groups": GROUPS,
            "mm_cfg.use_im_start_end": self.start_end,
            **(lita if self.arch else {}),
        }

    @property
    def seen(self) -> list[int]:
        """Frames of the video that NeMo's loader gives; LITA 1.5's runner takes all of a short one."""
        if self.arch == "temporal_all_resolution":
            return list(range(self.total))
        places = list(range(self.total))
        return [*places, *[places[-1]] * (FRAMES - self.total)]


CASES = {
    "video-neva": Case(Family.VIDEO_NEVA),
    "video-neva, marks kept": Case(Family.VIDEO_NEVA, start_end=True),
    "video-neva, short": Case(Family.VIDEO_NEVA, total=2),
    "lita 1.5": Case(Family.LITA, "temporal_all_resolution"),
    "lita 1.5, marks kept": Case(Family.LITA, "temporal_all_resolution", start_end=True),
    "lita 1.5, fewer frames than are shown whole": Case(Family.LITA, "temporal_all_resolution", total=2),
    "vita": Case(Family.VITA, "temporal_all_resolution", total=5),
    "lita 1, pooled": Case(Family.LITA, "temporal_spatial_pool"),
    "lita 1, pooled, marks kept": Case(Family.LITA, "temporal_spatial_pool", start_end=True),
    "lita 1, spatial": Case(Family.LITA, "temporal_spatial"),
}
FAMILIES = {"video-neva": "video-neva, marks kept", "lita": "lita 1.5", "vita": "vita"}
"""Those of which every form is read."""


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(11)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=tiny.TOWER_WIDTH,
            intermediate_size=3 * tiny.TOWER_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=tiny.CROP,
            patch_size=tiny.PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=tiny.VOCAB,
            hidden_size=tiny.HIDDEN,
            intermediate_size=tiny.FFN,
            num_hidden_layers=tiny.LAYERS,
            num_attention_heads=tiny.HEADS,
            num_key_value_heads=GROUPS,
            max_position_embeddings=tiny.CONTEXT,
            rms_norm_eps=1e-5,
        ),
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config).float().eval()
    for name, parameter in model.named_parameters():
        noisy = parameter.data + torch.randn_like(parameter) * 0.1
        parameter.data = noisy.bfloat16().float() if "vision_tower" in name else noisy
    return model


def write_checkpoint(folder: Path, llava: LlavaForConditionalGeneration, case: Case) -> Path:
    archive = Archive.read(CLASSIC)
    for key, value in case.config.items():
        archive.set_config(key, value)
    config = archive.config()
    shape = nemo_writer.LlamaShape(layers=tiny.LAYERS, heads=tiny.HEADS, groups=GROUPS, padded_vocab=tiny.PADDED_VOCAB)
    state = nemo_writer.classic_state(tiny.llama_state(llava), tiny.part(llava, "model.multi_modal_projector."), shape)
    tiny.save_clip(folder / "clip", llava)
    path = folder / "model.nemo"
    tokenizer = archive.members[config["tokenizer"]["model"].removeprefix("nemo:")]
    nemo_writer.write_archive(path, config=config, tokenizer=tokenizer, state=state, distributed=False)
    return path


def placeholders(case: Case, frames: int) -> str:
    """What NeMo's dataset puts in the place of `<video>`."""
    rows = tiny.PATCHES
    if case.arch == "temporal_all_resolution":
        short = 0 if case.start_end else 1  # without kept marks, the outer two stand where one row would
        parts = [START + PATCH * (rows - short) + END]
        parts += [START + PATCH * rows + END] * (SAMPLE_FRAMES - 1)
        parts += [VIDEO_START + PATCH * (frames - short) + VIDEO_END]
        return START + "".join(parts) + END
    total = frames + rows if case.arch else frames * rows
    return START + PATCH * (total if case.start_end else total - 2) + END


def put(case: Case, ids: list[int], embedded: Tensor, features: Tensor, pieces: Any) -> Tensor:
    """Put features over the placeholders, one row after the other, as NeMo's embedding does."""
    first = ids.index(pieces.piece_to_id(START))
    last = len(ids) - 1 - ids[::-1].index(pieces.piece_to_id(END))
    at, end = (first + 1, last - 1) if case.start_end else (first, last)
    frames, rows, _ = features.shape
    times = [features[frame].mean(0) for frame in range(frames)]
    result = embedded.clone()
    if case.arch == "temporal_all_resolution":
        if not case.start_end:
            result[at], result[end] = embedded[at + 1], embedded[end - 1]
        at += 1
        for frame in np.round(np.linspace(0, frames - 1, SAMPLE_FRAMES)).astype(int):
            for row in range(rows):
                result[at] = features[frame, row]
                at += 1
            at += 2
        for time in times:
            result[at] = time
            at += 1
        assert at == end
        return result
    for row in {"": flat, "temporal_spatial": spatial, "temporal_spatial_pool": pooled}[case.arch](features, times):
        result[at] = row
        at += 1
    assert at == end + 1
    return result


def flat(features: Tensor, _times: list[Tensor]) -> list[Tensor]:
    return [row for frame in features for row in frame]


def spatial(features: Tensor, times: list[Tensor]) -> list[Tensor]:
    return [*times, *(features[:, row].mean(0) for row in range(features.shape[1]))]


def pooled(features: Tensor, times: list[Tensor]) -> list[Tensor]:
    edge = tiny.CROP // tiny.PATCH
    cells = []
    for frame in np.round(np.linspace(0, len(features) - 1, 4)).astype(int):
        grid = features[frame].reshape(edge, edge, -1)
        cells += [grid[y : y + 2, x : x + 2].mean((0, 1)) for y in range(0, edge, 2) for x in range(0, edge, 2)]
    return [*times, *cells]


def video(case: Case) -> Tensor:
    """[frames, 3, `CROP`, `CROP`]."""
    return torch.randn(case.total, 3, tiny.CROP, tiny.CROP, generator=torch.Generator().manual_seed(5))


def pieces_of(archive: Archive) -> Any:
    model = archive.members[archive.config()["tokenizer"]["model"].removeprefix("nemo:")]
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def reference_logits(case: Case, llava: LlavaForConditionalGeneration, pixels: Tensor, pieces: Any) -> Tensor:
    pixels = pixels[case.seen]
    states = llava.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    features = llava.model.multi_modal_projector(states[-2][:, 1:])
    text = f"{SYSTEM} USER: {placeholders(case, len(pixels))}\n{QUESTION} ASSISTANT:"
    ids = pieces.encode(text)
    embedded = llava.model.language_model.get_input_embeddings()(torch.tensor(ids))
    inputs = put(case, ids, embedded, features, pieces)
    hidden = llava.model.language_model(inputs_embeds=inputs[None]).last_hidden_state[0]
    logits: Tensor = llava.lm_head(hidden)
    return logits


def served_logits(out: Path, pixels: Tensor, places: list[int]) -> Tensor:
    model = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))
    recipe = model.recipe
    tokenizer = Tokenizer(out / "llm" / "tokenizer.json", add_bos=recipe.add_bos)
    turn = Turn((lay_out(recipe.seeing(), len(places)), QUESTION))
    prompt = tokenizer.encode(render(recipe.template, (turn,)))
    at = [place for span in prompt.media for place in range(span.start, span.start + span.length)]
    rows = model.media.arrange(model.media.encode(pixels[places]))
    embeddings = model.prompt_embeddings(prompt.ids, at, rows)
    with torch.inference_mode():
        return model.llm.logits(embeddings[None], model.llm.new_cache())[0, :, : tiny.VOCAB]


def convert(path: Path, family: Family, out: Path, llm: Path | None = None) -> None:
    paths = CheckpointPaths(visual=path, llm=llm)
    write_model(out, paths, family=family)


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_served_logits_are_those_of_training(tmp_path: Path, llava: LlavaForConditionalGeneration, case: Case) -> None:
    path = write_checkpoint(tmp_path, llava, case)
    convert(path, case.family, tmp_path / "out")
    pixels = video(case)
    with torch.inference_mode():
        wanted = reference_logits(case, llava, pixels, pieces_of(Archive.read(path)))
    recipe = read_recipe(tmp_path / "out").seeing().video
    assert recipe is not None
    places = list(choose_frames(recipe, case.total))
    assert places == case.seen
    served = served_logits(tmp_path / "out", pixels, places)
    assert served.shape == wanted.shape
    assert wanted.abs().max() > 1
    assert difference(served, wanted) <= TOLERANCE
    if case.total > 1:
        turned = served_logits(tmp_path / "out", pixels.flip(0), places)
        assert difference(turned, wanted) > WRONG


@pytest.fixture(scope="module")
def everywhere(llava: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """What each family's forms have to score."""
    with torch.inference_mode():
        return {
            name: reference_logits(CASES[case], llava, video(CASES[case]), pieces_of(Archive.read(CLASSIC)))
            for name, case in FAMILIES.items()
        }


@pytest.mark.parametrize(
    ("family", "form"), [(family, form) for family in FAMILIES for form in upstream.forms_of(family)]
)
def test_every_form_gives_the_logits_of_training(
    tmp_path: Path, llava: LlavaForConditionalGeneration, everywhere: dict[str, Tensor], family: str, form: str
) -> None:
    case = CASES[FAMILIES[family]]
    archive, state = upstream.read_classic(write_checkpoint(tmp_path, llava, case))
    paths = upstream.FORMS[form].write(archive, state, tmp_path)
    convert(paths.visual, case.family, tmp_path / "out", paths.llm)
    assert difference(served_logits(tmp_path / "out", video(case), case.seen), everywhere[family]) <= TOLERANCE


@pytest.mark.parametrize("name", ["video-neva", "lita 1.5"])
def test_a_build_verifies_with_a_video_and_publishes(
    tmp_path: Path, llava: LlavaForConditionalGeneration, name: str
) -> None:
    path = write_checkpoint(tmp_path, llava, CASES[name])
    request = request_for(path, family=CASES[name].family, limits=Limits(vision_max_batch_size=4))
    assert run_build(request, Store(tmp_path / "store"), Tracker()).outcome is Outcome.PUBLISHED
