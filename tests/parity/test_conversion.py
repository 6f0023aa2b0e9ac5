"""The served path against transformers' LLaVA on the same weights, from archives that the tests' own writer made.

The writer (`examples/tiny/nemo_writer.py`) and the product's reader share no code, so an agreement is between two
independent accounts of NeMo's format. What is compared is what a worker does: encode, splice, decode.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import nemo_writer
from tiny.neva import model as tiny
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from multimodal_api.build import ExitCode, Outcome
from multimodal_api.engine import MODEL_DIR, Dtype
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Sampling
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.main import main
from multimodal_builder.progress import Tracker
from multimodal_builder.stages import run_build
from multimodal_builder.store import Store
from multimodal_modeling.generate import generate
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.recipe import Recipe
from multimodal_recipes.tokenizer import Tokenizer
from support import upstream
from support.archives import CLASSIC, DISTRIBUTED, TINY, Archive
from support.builds import request_for
from support.conversion import write_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

VOCAB = 500
PADDED = 512
TOLERANCE = 1e-5
"""Largest difference of logits in float32, in parts of the largest logit."""
WRONG = 1e-2
"""A mistake moves logits by more than this part."""


@dataclass(frozen=True)
class Sizes:
    """One random model."""

    heads: int = 4
    groups: int = 2
    head_size: int = 24
    layers: int = 2
    theta: float = 10_000.0
    select_layer: int = -2
    cls_patch: bool = False
    tied: bool = False
    distributed: bool = True
    start_end: bool = False

    @property
    def media(self) -> int:
        return tiny.PATCHES + self.cls_patch


MODELS = {
    "grouped": Sizes(),
    "grouped, classic": Sizes(distributed=False),
    "every head its own": Sizes(groups=4),
    "every head its own, classic": Sizes(groups=4, distributed=False),
    "one key for all": Sizes(groups=1),
    "wide heads": Sizes(head_size=40, theta=500_000.0),
    "three layers, another hidden state": Sizes(layers=3, select_layer=-1),
    "class token kept": Sizes(cls_patch=True, select_layer=2),
    "tied": Sizes(tied=True),
    "tied, classic": Sizes(tied=True, distributed=False),
    "start and end stay": Sizes(start_end=True),
}


def make_reference(sizes: Sizes) -> LlavaForConditionalGeneration:
    torch.manual_seed(7)
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
            vocab_size=VOCAB,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.groups,
            head_dim=sizes.head_size,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
            tie_word_embeddings=sizes.tied,
        ),
        image_token_index=3,
        vision_feature_layer=sizes.select_layer,
        vision_feature_select_strategy="full" if sizes.cls_patch else "default",
        tie_word_embeddings=sizes.tied,
    )
    model = LlavaForConditionalGeneration(config).float().eval()
    for name, parameter in model.named_parameters():
        noisy = parameter.data + torch.randn_like(parameter) * 0.1
        # A trained tower lies in the archive, and NeMo always holds it as bfloat16.
        parameter.data = noisy.bfloat16().float() if "vision_tower" in name else noisy
    return model


def write_checkpoint(folder: Path, reference: LlavaForConditionalGeneration, sizes: Sizes, change: Any = None) -> Path:
    trained = Archive.read(DISTRIBUTED if sizes.distributed else CLASSIC)
    config = trained.config()
    tokenizer = trained.members[config["tokenizer"]["model"].removeprefix("nemo:")]
    config |= {
        "num_layers": sizes.layers,
        "ffn_hidden_size": 192,
        "num_attention_heads": sizes.heads,
        # Files of models without groups carry null here.
        "num_query_groups": None if sizes.groups == sizes.heads else sizes.groups,
        "kv_channels": None if sizes.heads * sizes.head_size == 96 else sizes.head_size,
        "rotary_base": sizes.theta,
        "share_embeddings_and_output_weights": sizes.tied,
    }
    config["mm_cfg"]["vision_encoder"] |= {
        "vision_select_layer": sizes.select_layer,
        "vision_select_feature": "cls_patch" if sizes.cls_patch else "patch",
    }
    config["mm_cfg"]["use_im_start_end"] = sizes.start_end
    shape = nemo_writer.LlamaShape(layers=sizes.layers, heads=sizes.heads, groups=sizes.groups, padded_vocab=PADDED)
    llama = tiny.llama_state(reference)
    projector = tiny.part(reference, "model.multi_modal_projector.")
    if sizes.distributed:
        state = nemo_writer.distributed_state(llama, projector, tiny.tower_state(reference), shape)
    else:
        state = nemo_writer.classic_state(llama, projector, shape)
    if sizes.tied:
        del state["model.output_layer.weight"]
    if change:
        change(state)
    tiny.save_clip(folder / "clip", reference)
    path = folder / "model.nemo"
    nemo_writer.write_archive(path, config=config, tokenizer=tokenizer, state=state, distributed=sizes.distributed)
    return path


def convert(path: Path, out: Path, llm: Path | None = None) -> Path:
    paths = CheckpointPaths(visual=path, llm=llm)
    write_model(out, paths)
    return out


@dataclass(frozen=True)
class Question:
    """A random prompt: ids with the picture's place, and pixels."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    pixels: Tensor


def ask() -> Question:
    rng = np.random.default_rng(3)
    pixels = torch.from_numpy(rng.standard_normal((1, 3, tiny.CROP, tiny.CROP), dtype=np.float32))
    # Id 0, and ids that transformers takes for no picture; long enough to turn the rotary angles far.
    ids = rng.integers(20, VOCAB, 400)
    return Question((0, *ids[:10].tolist(), 0), tuple(ids[10:].tolist()), pixels)


def served_logits(model: MultimodalModel, question: Question) -> tuple[Tensor, Tensor]:
    """Run the worker's path; give the prompt's embeddings and [tokens, rows] logits."""
    rows = model.recipe.seeing().tokens_per_image
    at = range(len(question.before), len(question.before) + rows)
    ids = [*question.before, *[0] * rows, *question.after]
    embeddings = model.prompt_embeddings(ids, at, model.media.encode(question.pixels).flatten(0, 1))
    with torch.inference_mode():
        return embeddings, model.llm.logits(embeddings[None], model.llm.new_cache())[0]


def reference_ids(question: Question, sizes: Sizes) -> Tensor:
    return torch.tensor([[*question.before, *[3] * sizes.media, *question.after]])


def difference(out: Path, reference: LlavaForConditionalGeneration, sizes: Sizes) -> float:
    question = ask()
    _, served = served_logits(load(out), question)
    with torch.inference_mode():
        wanted = reference(input_ids=reference_ids(question, sizes), pixel_values=question.pixels).logits[0]
    assert wanted.abs().max() > 1
    return distance(served[:, :VOCAB], wanted)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def load(out: Path) -> MultimodalModel:
    return MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS.keys())
def test_served_logits_are_transformers_logits(tmp_path: Path, sizes: Sizes) -> None:
    reference = make_reference(sizes)
    out = convert(write_checkpoint(tmp_path, reference, sizes), tmp_path / "out")
    assert load(out).recipe.seeing().tokens_per_image == sizes.media
    assert difference(out, reference, sizes) <= TOLERANCE


EVERY_FORM = Sizes(heads=8, head_size=12, groups=4, theta=500_000.0, distributed=False)


@cache
def everywhere() -> LlavaForConditionalGeneration:
    return make_reference(EVERY_FORM)


@pytest.mark.parametrize("form", upstream.forms_of("neva"))
def test_every_form_gives_the_logits_of_transformers(tmp_path: Path, form: str) -> None:
    """The tower was trained too, and lies in the checkpoint."""
    reference = everywhere()
    archive, state = upstream.read_classic(write_checkpoint(tmp_path, reference, EVERY_FORM))
    state |= {f"{nemo_writer.TOWER}{name}": tensor for name, tensor in tiny.tower_state(reference).items()}
    paths = upstream.FORMS[form].write(archive, state, tmp_path)
    assert difference(convert(paths.visual, tmp_path / "out", paths.llm), reference, EVERY_FORM) <= TOLERANCE


@pytest.mark.parametrize("sizes", [MODELS["grouped"], MODELS["every head its own, classic"]], ids=["dist", "classic"])
def test_greedy_answers_are_identical_and_padding_is_never_chosen(tmp_path: Path, sizes: Sizes) -> None:
    """Untrained rows of a real checkpoint may score anything: here they would win every time."""

    def tempt(state: dict[str, Tensor]) -> None:
        state["model.output_layer.weight"][VOCAB:] = state["model.output_layer.weight"][:1] * 1000

    reference = make_reference(sizes)
    model = load(convert(write_checkpoint(tmp_path, reference, sizes, tempt), tmp_path / "out"))
    question = ask()
    embeddings, logits = served_logits(model, question)
    assert logits.argmax(-1).max() >= VOCAB
    served = list(
        generate(
            model.llm,
            embeddings,
            Sampling(),
            prompt_ids=(),
            vocab_size=model.recipe.vocab_size,
            eos_token_ids=(),
            max_new_tokens=40,
        )
    )
    ids = reference_ids(question, sizes)
    wanted = reference.generate(
        input_ids=ids, pixel_values=question.pixels, max_new_tokens=40, do_sample=False, eos_token_id=None
    )
    assert served == wanted[0, ids.shape[1] :].tolist()
    assert len(set(served)) > 1


def test_the_trained_tower_in_the_archive_is_used_not_the_one_beside_it(tmp_path: Path) -> None:
    sizes = Sizes()
    reference = make_reference(sizes)
    path = write_checkpoint(tmp_path, reference, sizes)
    other = make_reference(sizes)
    for parameter in other.model.vision_tower.parameters():
        parameter.data.zero_()
    tiny.save_clip(tmp_path / "clip", other)
    assert difference(convert(path, tmp_path / "out"), reference, sizes) <= TOLERANCE


def test_both_layouts_give_the_same_weights(tmp_path: Path) -> None:
    reference = make_reference(Sizes())
    states = []
    for distributed in (True, False):
        folder = tmp_path / str(distributed)
        folder.mkdir()
        out = convert(write_checkpoint(folder, reference, Sizes(distributed=distributed)), folder / "out")
        states.append(AutoModelForCausalLM.from_pretrained(out / "llm").state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("archive", [DISTRIBUTED, CLASSIC], ids=["dist", "classic"])
def test_the_canonical_folders_are_transformers_own(tmp_path: Path, archive: Path) -> None:
    out = convert(archive, tmp_path / "out")
    for loader, folder in ((AutoModelForCausalLM, "llm"), (CLIPVisionModel, "vision")):
        _, info = loader.from_pretrained(out / folder, output_loading_info=True)
        assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(out / "llm")
    trained = Archive.read(archive)
    prompter = tiny.Prompter.from_bytes(trained.members[trained.config()["tokenizer"]["model"].removeprefix("nemo:")])
    text = "How many red circles are there?\nOne."
    assert tokenizer(text)["input_ids"] == prompter.tokenizer.encode(text)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert len(tokenizer) == VOCAB


@pytest.mark.parametrize("archive", [DISTRIBUTED, CLASSIC], ids=["dist", "classic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_held_out_questions_are_answered_from_the_canonical_model(
    tmp_path: Path, archive: Path, dtype: torch.dtype
) -> None:
    out = convert(archive, tmp_path / "out")
    model = MultimodalModel.load(out, dtype=dtype, device=torch.device("cpu"))
    tokenizer = Tokenizer(out / "llm" / "tokenizer.json", add_bos=model.recipe.add_bos)
    questions = json.loads((TINY / "heldout" / "heldout.json").read_text())
    right = sum(answer(model, tokenizer, question) == question["answer"] for question in questions)
    assert right >= 0.95 * len(questions)


def answer(model: MultimodalModel, tokenizer: Tokenizer, question: dict[str, str]) -> str:
    recipe = model.recipe
    picture = np.asarray(Image.open(TINY / "heldout" / question["picture"]).convert("RGB"))[None]
    vision = recipe.seeing()
    prompt = tokenizer.encode(render(recipe.template, (Turn((lay_out(vision), question["question"])),)))
    media = model.media.encode(torch.from_numpy(preprocess(picture, vision.preprocessing, at="picture")))
    at = [place for span in prompt.media for place in range(span.start, span.start + span.length)]
    tokens = generate(
        model.llm,
        model.prompt_embeddings(prompt.ids, at, media.flatten(0, 1)),
        Sampling(),
        prompt_ids=(),
        vocab_size=recipe.vocab_size,
        eos_token_ids={*recipe.eos_token_ids, *tokenizer.stop_ids(recipe.stop_strings)},
        max_new_tokens=24,
    )
    return tokenizer.decode(list(tokens)).strip()


def test_the_start_and_end_of_media_stay_where_training_kept_them(tmp_path: Path) -> None:
    reference = make_reference(Sizes())
    kept = convert(write_checkpoint(tmp_path, reference, Sizes(start_end=True)), tmp_path / "kept")
    template = Recipe.model_validate_json((kept / "recipe.json").read_bytes()).template
    assert template.medium == "<extra_id_4>{media}<extra_id_5>\n"


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
@pytest.mark.parametrize("archive", [DISTRIBUTED, CLASSIC], ids=["dist", "classic"])
def test_a_real_build_verifies_with_torch_and_publishes(tmp_path: Path, archive: Path, dtype: Dtype) -> None:
    request = request_for(archive, dtype=dtype)
    report = run_build(request, Store(tmp_path), Tracker())
    assert report.outcome is Outcome.PUBLISHED
    assert load(tmp_path / request.key / MODEL_DIR).recipe.family is Family.NEVA


def test_an_engine_that_does_not_compute_is_not_published(tmp_path: Path) -> None:
    def poison(state: dict[str, Tensor]) -> None:
        state["model.decoder.final_layernorm.weight"][:] = float("nan")

    path = write_checkpoint(tmp_path, make_reference(Sizes()), Sizes(), poison)
    request = request_for(path)
    store = Store(tmp_path / "engines")
    store.root.mkdir()
    with pytest.raises(ProductError, match="finite") as caught:
        run_build(request, store, Tracker())
    assert caught.value.failure.reason is Reason.VERIFICATION_FAILED
    assert store.find(request.key) is None


@pytest.mark.parametrize("name", ["grouped", "every head its own, classic", "class token kept", "tied"])
def test_the_merged_folder_is_transformers_llava(tmp_path: Path, name: str) -> None:
    sizes = MODELS[name]
    reference = make_reference(sizes)
    path = write_checkpoint(tmp_path, reference, sizes)
    assert main(["convert", str(path), str(tmp_path / "out"), "--layout", "llava"]) == ExitCode.OK
    merged, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out" / "llava", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    question = ask()
    image_id = merged.config.image_token_index
    ids = torch.tensor([[*question.before, *[image_id] * sizes.media, *question.after]])
    ours = ids != image_id  # the id that stands for a picture is another one: compare where text stands
    with torch.inference_mode():
        found = merged.eval()(input_ids=ids, pixel_values=question.pixels).logits[..., :VOCAB]
        wanted = reference(input_ids=reference_ids(question, sizes), pixel_values=question.pixels).logits
    assert distance(found[ours], wanted[ours]) <= TOLERANCE
