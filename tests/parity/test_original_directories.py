"""Folders of LLaVA's and VILA's own code as checkpoints: converted, they score as their parts do in transformers."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from multimodal_api.build import ExitCode, Outcome
from multimodal_api.engine import Dtype, Limits
from multimodal_api.families import Family, LlmType
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.checkpoints.hub import Hub
from multimodal_builder.inspection import Inspection, inspect
from multimodal_builder.main import main
from multimodal_builder.progress import Tracker
from multimodal_builder.stages import run_build
from multimodal_builder.store import Store
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.recipe import FrameResize
from multimodal_recipes.tokenizer import TOKENIZER_NAME
from multimodal_recipes.tokenizer import Tokenizer as ServingTokenizer
from support.builds import request_for
from support.conversion import write_model
from support.fake_hub import FakeHub
from support.original_folders import (
    Whole,
    make_whole,
    write_old_rope,
    write_original,
    write_sentencepiece,
    write_vila,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.parity

ROWS = 400
TOLERANCE = 1e-5
"""Largest difference of logits in float32, as a part of the largest logit."""
WRONG = 1e-2
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def look(folder: Path, **changes: Any) -> Inspection:
    wanted = {"family": Family.VILA, "llm_type": LlmType.LLAMA, "dtype": Dtype.FLOAT32, "limits": None} | changes
    inspection, _, opened = inspect(CheckpointPaths(visual=folder), **wanted)
    opened.close()
    return inspection


def convert(folder: Path, out: Path, family: Family = Family.VILA) -> MultimodalModel:
    write_model(out, CheckpointPaths(visual=folder), family=family)
    assert AutoModelForCausalLM.from_pretrained(out / "llm")
    assert AutoTokenizer.from_pretrained(out / "llm")
    return MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))


def difference(served: MultimodalModel, whole: Whole, *, joined: bool = False, by_line: bool = False) -> float:
    generator = torch.Generator().manual_seed(1)
    edge = whole.tower.config.image_size
    pixels = torch.randn(1, 3, edge, edge, generator=generator)
    before, after = (torch.randint(3, 300, (size,), generator=generator).tolist() for size in (9, 300))
    wanted = whole.scores(before, pixels, after, joined=joined, by_line=by_line)
    with torch.inference_mode():
        media = served.media.encode(pixels).flatten(0, 1)
        rows = served.recipe.seeing().tokens_per_image
        at = range(len(before), len(before) + rows)
        embeddings = served.prompt_embeddings([*before, *[0] * rows, *after], at, media)
        found = served.llm.logits(embeddings[None], served.llm.new_cache())[0]
    return float((found - wanted).abs().max() / wanted.abs().max())


VILAS = {
    "clip, patch": ("mlp2x_gelu", {"siglip": False, "feature": "patch", "edge": 48}),
    "clip, all tokens": ("linear", {"siglip": False, "feature": "cls_patch", "edge": 48}),
    "siglip, joined, even": ("mlp_downsample", {"siglip": True, "feature": "cls_patch", "edge": 48}),
    "siglip, joined, odd": ("mlp_downsample", {"siglip": True, "feature": "cls_patch", "edge": 40}),
}


@pytest.mark.parametrize(("kind", "sizes"), VILAS.values(), ids=VILAS)
def test_a_vila_scores_as_its_parts(tmp_path: Path, kind: str, sizes: dict[str, Any]) -> None:
    whole = make_whole(kind, **sizes, rows=ROWS)
    folder = write_vila(tmp_path / "vila", whole, kind)
    write_sentencepiece(folder / "llm")
    served = convert(folder, tmp_path / "out")
    joined = kind == "mlp_downsample"
    assert difference(served, whole, joined=joined) <= TOLERANCE
    assert served.recipe.seeing().preprocessing.resize is FrameResize.SQUASH
    if joined:  # the order of the joined tokens is seen
        assert difference(served, whole, joined=True, by_line=True) > WRONG


ORIGINALS = {
    "all inside": {"tower_inside": True, "projector_beside": False, "pickled": False},
    "projector beside, tower named": {"tower_inside": False, "projector_beside": True, "pickled": True},
    "tower named": {"tower_inside": False, "projector_beside": False, "pickled": True},
}


@pytest.mark.parametrize("form", ORIGINALS.values(), ids=ORIGINALS)
def test_a_llava_of_its_own_code_scores_as_its_parts(tmp_path: Path, form: dict[str, bool]) -> None:
    whole = make_whole("mlp2x_gelu", siglip=False, feature="patch", edge=48, rows=ROWS)
    folder = write_original(tmp_path / "llava", whole, "mlp2x_gelu", **form)
    write_sentencepiece(folder)
    served = convert(folder, tmp_path / "out", Family.NEVA)
    assert difference(served, whole) <= TOLERANCE
    assert served.recipe.seeing().preprocessing.resize is FrameResize.PAD
    assert look(folder).tower_in_checkpoint is form["tower_inside"]
    written = json.loads((tmp_path / "out" / "llm" / "config.json").read_text())
    assert not [key for key in written if key.startswith("mm_")]


def test_positions_in_the_keys_of_older_transformers_are_read(tmp_path: Path) -> None:
    whole = make_whole("linear", siglip=False, feature="patch", edge=48, rows=ROWS, stretched=4.0)
    folder = write_vila(tmp_path / "vila", whole, "linear")
    write_old_rope(folder / "llm" / "config.json")
    write_sentencepiece(folder / "llm")
    assert difference(convert(folder, tmp_path / "out"), whole) <= TOLERANCE


def test_a_tower_that_is_not_beside_comes_from_the_hub(tmp_path: Path) -> None:
    whole = make_whole("linear", siglip=False, feature="patch", edge=48, rows=ROWS)
    form = {"tower_inside": False, "projector_beside": False, "pickled": False}
    folder = write_original(tmp_path / "llava", whole, "linear", **form, mm_vision_tower="owner/tower")
    write_sentencepiece(folder)
    tower = tmp_path / "tower-beside"
    files = {path.name: path.read_bytes() for path in tower.iterdir()}
    shutil.rmtree(tower)
    with FakeHub({"owner/tower": files}).running() as fake:
        found = look(folder, hub=Hub(tmp_path / "hub", endpoint=fake.url), limits=Limits(vision_max_batch_size=1))
    assert found.problems == ()
    assert (found.tokens_per_image, found.tower_in_checkpoint) == (36, False)


def test_a_vila_becomes_an_engine_that_answers(tmp_path: Path) -> None:
    """All stages of a build; the last one asks the engine a question."""
    whole = make_whole("mlp_downsample", siglip=True, feature="cls_patch", edge=48, rows=ROWS)
    folder = write_vila(tmp_path / "vila", whole, "mlp_downsample")
    write_sentencepiece(folder / "llm")
    request = request_for(folder, family=Family.VILA)
    (tmp_path / "engines").mkdir()
    report = run_build(request, Store(tmp_path / "engines"), Tracker())
    assert report.outcome is Outcome.PUBLISHED


def prompt_ids(out: Path, served: MultimodalModel, turns: tuple[Turn, ...]) -> list[int]:
    """Ids as they are served, with -1 at rows."""
    tokenizer = ServingTokenizer(out / "llm" / TOKENIZER_NAME, add_bos=served.recipe.add_bos)
    prompt = tokenizer.encode(render(served.recipe.template, turns))
    found = list(prompt.ids)
    for span in prompt.media:
        found[span.start : span.start + span.length] = [-1] * span.length
    return found


def test_prompts_of_a_sentencepiece_model_are_those_of_training(tmp_path: Path) -> None:
    """As LLaVA's code makes them: the texts before and behind a picture are tokenised each by itself."""
    whole = make_whole("linear", siglip=False, feature="patch", edge=48, rows=ROWS)
    folder = write_vila(tmp_path / "vila", whole, "linear")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=write_sentencepiece(folder / "llm"))
    served = convert(folder, tmp_path / "out")
    medium = lay_out(served.recipe.seeing())
    turns = (Turn((medium, "How many red circles?"), "Three."), Turn(("What is left?",)))
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    behind = pieces.encode("\nHow many red circles? ASSISTANT: Three.")
    # What stands behind a special token begins without a space of its own: LlamaTokenizer with legacy=False.
    again = pieces.encode("\nUSER: What is left? ASSISTANT:")[len(pieces.encode("\n")) :]
    wanted = [1, *pieces.encode(f"{system} USER: "), *[-1] * medium.rows, *behind, 2, *again]
    assert prompt_ids(tmp_path / "out", served, turns) == wanted
    assert served.recipe.eos_token_ids == (2,)
    assert served.recipe.stop_strings == ()


def llama_3(folder: Path) -> PreTrainedTokenizerFast:
    fast = Tokenizer(models.BPE(ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(["How many red circles are there? You are a helpful assistant."] * 20, trainer)
    added = (*HEADERS, "<im_start>", "<im_end>")
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    bos = fast.token_to_id(HEADERS[0])
    fast.post_processor = processors.TemplateProcessing(f"{HEADERS[0]} $A", special_tokens=[(HEADERS[0], bos)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=HEADERS[0], eos_token=HEADERS[1])
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("start_end", [False, True])
def test_prompts_of_llama_3_are_those_of_training(tmp_path: Path, start_end: bool) -> None:  # noqa: FBT001
    whole = make_whole("linear", siglip=False, feature="patch", edge=48, rows=ROWS)
    folder = write_vila(tmp_path / "vila", whole, "linear", mm_use_im_start_end=start_end)
    tokenizer = llama_3(folder / "llm")
    served = convert(folder, tmp_path / "out")
    medium = lay_out(served.recipe.seeing())
    start, end = ("<im_start>", "<im_end>") if start_end else ("", "")
    before = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, and assist the user with a variety of "
        f"tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{start}"
    )
    behind = f"{end}\nHow many?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    chunks = [tokenizer(chunk)["input_ids"] for chunk in (before, behind)]
    found = prompt_ids(tmp_path / "out", served, (Turn((medium, "How many?")),))
    assert found == [*chunks[0], *[-1] * medium.rows, *chunks[1][1:]]
    assert served.recipe.stop_strings == ("<|eot_id|>",)


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **changes)


def drop(file: str, name: str) -> Callable[[Path], None]:
    def without(folder: Path) -> None:
        state = load_file(folder / file)
        save_file({found: tensor for found, tensor in state.items() if found != name}, folder / file)

    return without


def add(file: str, name: str) -> Callable[[Path], None]:
    return lambda folder: save_file(load_file(folder / file) | {name: torch.zeros(3)}, folder / file)


BOTH: list[tuple[Callable[[Path], None], str]] = [
    (edit(image_aspect_ratio="anyres"), "config.json: image_aspect_ratio"),
    (edit(s2=True), "config.json: s2"),
    (edit(image_encoder="{}"), "config.json: image_encoder"),
    (edit(mm_vision_select_layer=-9), "the tower has 3 layers"),
    (edit(mm_use_im_start_end=True), "<im_start>"),
]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        *BOTH,
        (drop("mm_projector/model.safetensors", "layers.2.bias"), "1 missing: mm_projector.2.bias"),
        (add("mm_projector/model.safetensors", "layers.5.bias"), "1 left over: layers.5.bias"),
        (drop("llm/model.safetensors", "model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
        (lambda f: change(f / "mm_projector/config.json", mm_projector_type="resampler"), "mm_projector_type"),
        (lambda f: change(f / "vision_tower/config.json", model_type="radio"), "no vision tower"),
        (lambda f: (f / "llm/tokenizer.model").unlink(), "tokenizer.json"),
        (lambda f: (f / "llm/added_tokens.json").write_text('{"<a>": 900}'), "is not its token 900"),
        (lambda f: (f / "llm/added_tokens.json").write_text('{"<|im_start|>": 320}'), "a conversation"),
        (lambda f: (f / "mm_projector/config.json").unlink(), "mm_projector/config.json"),
    ],
)
def test_a_wrong_vila_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    whole = make_whole("mlp2x_gelu", siglip=False, feature="patch", edge=48, rows=ROWS)
    folder = write_vila(tmp_path / "vila", whole, "mlp2x_gelu")
    write_sentencepiece(folder / "llm")
    assert look(folder).problems == ()
    damage(folder)
    (problem,) = look(folder).problems
    assert says in str(problem)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        *BOTH,
        (edit(mm_projector_type="mlp_downsample"), "mm_projector_type"),
        (edit(mm_patch_merge_type="spatial_unpad"), "mm_patch_merge_type"),
        (edit(mm_vision_tower="nowhere"), "mm_vision_tower"),
        (add("model.safetensors", "model.image_newline"), "1 left over: model.image_newline"),
        (drop("model.safetensors", "model.mm_projector.0.weight"), "1 missing: mm_projector.0.weight"),
        (drop("model.safetensors", "model.norm.weight"), "model.norm.weight"),
    ],
)
def test_a_wrong_llava_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    whole = make_whole("mlp2x_gelu", siglip=False, feature="patch", edge=48, rows=ROWS)
    form = {"tower_inside": True, "projector_beside": False, "pickled": False}
    folder = write_original(tmp_path / "llava", whole, "mlp2x_gelu", **form)
    write_sentencepiece(folder)
    damage(folder)
    (problem,) = look(folder).problems
    assert says in str(problem)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    whole = make_whole("mlp2x_gelu", siglip=False, feature="patch", edge=48, rows=ROWS)
    form = {"tower_inside": False, "projector_beside": True, "pickled": False}
    folder = write_original(tmp_path / "llava", whole, "mlp2x_gelu", **form)
    write_sentencepiece(folder)
    torch.save({"model.mm_projector.0.weight": print}, folder / "mm_projector.bin")
    (problem,) = look(folder).problems
    assert "print" in str(problem)


def test_types_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    whole = make_whole("linear", siglip=False, feature="patch", edge=48, rows=ROWS)
    folder = write_vila(tmp_path / "vila", whole, "linear")
    write_sentencepiece(folder / "llm")
    assert "type neva or vila" in look(folder, family=Family.LITA).problems[0].remedy
    assert "llmType llama" in look(folder, llm_type=LlmType.GEMMA).problems[0].remedy


def test_transformers_layout_is_refused_for_want_of_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = make_whole("mlp2x_gelu", siglip=False, feature="patch", edge=48, rows=ROWS)
    folder = write_vila(tmp_path / "vila", whole, "mlp2x_gelu")
    write_sentencepiece(folder / "llm")
    arguments = ["convert", str(folder), str(tmp_path / "out"), "--type", "vila", "--layout", "llava"]
    assert main(arguments) == ExitCode.REFUSED
    assert "needs a token for pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
