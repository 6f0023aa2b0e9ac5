"""Folders that transformers wrote, as checkpoints: converted, they score as transformers scores them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    Starcoder2Config,
)

from multimodal_api.engine import Dtype, Limits
from multimodal_api.families import Family, LlmType
from multimodal_builder.canonical import write_canonical
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.inspection import Inspection, inspect
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.tokenizer import TOKENIZER_NAME
from multimodal_recipes.tokenizer import Tokenizer as ServingTokenizer
from support.archives import CLASSIC, Archive
from support.conversion import write_model
from support.original_folders import write_sentencepiece
from support.peft_writer import PeftAdapter
from support.states import keep_tensors
from support.tiny_tokenizer import VOCAB, write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from transformers import PreTrainedModel

    from multimodal_builder.plan import Plan

pytestmark = pytest.mark.parity

IMAGE = VOCAB
"""Id of the picture's token."""
ROWS = VOCAB + 8
EDGE, PATCH = 48, 8
TOLERANCE = 1e-5
"""Largest difference of logits in float32, as a part of the largest logit."""
WRONG = 1e-2

VICUNA = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'user' %}{{ ' ' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""A conversation as LLaVA's processors carry it."""

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": EDGE,
    "patch_size": PATCH,
}
TEXT = {
    "vocab_size": ROWS,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

MODELS: dict[str, Callable[[], LlavaConfig]] = {
    "llama and clip": lambda: config(LlamaConfig(**TEXT, rope_parameters={"rope_type": "default", "rope_theta": 5e5})),
    "mistral": lambda: config(MistralConfig(**TEXT, head_dim=20, sliding_window=64)),
    "tied": lambda: config(LlamaConfig(**TEXT, tie_word_embeddings=True), tie_word_embeddings=True),
    "scaled positions": lambda: config(LlamaConfig(**TEXT, rope_parameters=LLAMA_3)),
    "biases": lambda: config(LlamaConfig(**TEXT, attention_bias=True, mlp_bias=True)),
    "all tokens of the first layer": lambda: config(
        LlamaConfig(**TEXT), vision_feature_layer=1, vision_feature_select_strategy="full"
    ),
    "siglip": lambda: config(
        LlamaConfig(**TEXT), vision_config=SiglipVisionConfig(**TOWER), vision_feature_select_strategy="full"
    ),
}


def config(text: Any, **changes: Any) -> LlavaConfig:
    settings = {"vision_config": CLIPVisionConfig(**TOWER), "image_token_index": IMAGE, "vision_feature_layer": -2}
    return LlavaConfig(text_config=text, **(settings | changes))


def reference(settings: LlavaConfig) -> LlavaForConditionalGeneration:
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration(settings).float().eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model


def save(model: LlavaForConditionalGeneration, folder: Path, **options: Any) -> Path:
    """Write a whole repository: weights, configurations, tokenizer, conversation."""
    model.save_pretrained(folder, **options)
    write_tokenizer(folder / "plain.json")
    fast = Tokenizer.from_file(str(folder / "plain.json"))
    (folder / "plain.json").unlink()
    assert fast.get_vocab_size() <= IMAGE
    fast.add_tokens([f"<unused{number}>" for number in range(IMAGE - fast.get_vocab_size())])
    fast.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    assert fast.token_to_id("<image>") == IMAGE
    bos = fast.token_to_id("<s>")
    fast.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", bos)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, **NAMED)
    tokenizer.chat_template = VICUNA
    tokenizer.save_pretrained(folder)
    siglip = model.config.vision_config.model_type == "siglip_vision_model"
    square = {"height": EDGE, "width": EDGE}
    processor = {
        "size": square if siglip else {"shortest_edge": EDGE}, "crop_size": square,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def look(folder: Path, **changes: Any) -> Inspection:
    wanted = {"family": Family.NEVA, "llm_type": LlmType.LLAMA, "dtype": Dtype.FLOAT32, "limits": None} | changes
    inspection, _, opened = inspect(CheckpointPaths(visual=folder), **wanted)
    opened.close()
    return inspection


def convert(folder: Path, out: Path, lora: Path | None = None) -> Path:
    write_model(out, CheckpointPaths(visual=folder, lora=lora))
    return out


def difference(out: Path, model: LlavaForConditionalGeneration) -> float:
    """Score a long prompt in both; the tokens of the served one stand where transformers has the picture's."""
    served = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.standard_normal((1, 3, EDGE, EDGE), dtype=np.float32))
    rows = served.recipe.seeing().tokens_per_image
    before, after = rng.integers(0, VOCAB, 9).tolist(), rng.integers(0, VOCAB, 300).tolist()
    ids = torch.tensor([[*before, *[IMAGE] * rows, *after]])
    with torch.inference_mode():
        wanted = model(input_ids=ids, pixel_values=pixels).logits[0]
        media = served.media.encode(pixels).flatten(0, 1)
        at = range(len(before), len(before) + rows)
        embeddings = served.prompt_embeddings([*before, *[0] * rows, *after], at, media)
        found = served.llm.logits(embeddings[None], served.llm.new_cache())[0]
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_a_llava_scores_as_in_transformers(tmp_path: Path, settings: Callable[[], LlavaConfig]) -> None:
    model = reference(settings())
    assert difference(convert(save(model, tmp_path / "llava"), tmp_path / "out"), model) <= TOLERANCE


def test_a_question_without_a_picture_scores_as_in_transformers(tmp_path: Path) -> None:
    model = reference(MODELS["llama and clip"]())
    out = convert(save(model, tmp_path / "llava"), tmp_path / "out")
    served = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))
    ids = np.random.default_rng(1).integers(0, VOCAB, 40).tolist()
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ids])).logits[0]
        embeddings = served.prompt_embeddings(ids, [], torch.empty(0, served.llm.hidden_size))
        found = served.llm.logits(embeddings[None], served.llm.new_cache())[0]
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE


def old_names(name: str) -> str:
    """What llava-hf's repositories hold."""
    for new, old in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")):
        if name.startswith(new):
            return old + name.removeprefix(new)
    if name.startswith("model.vision_tower.") and "vision_model." not in name:
        return name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return name.removeprefix("model.")


@pytest.mark.parametrize("rename", [None, old_names], ids=["transformers 5's names", "llava-hf's names"])
@pytest.mark.parametrize("form", ["one file", "shards", "pickle"])
def test_every_form_of_the_weights_is_the_same_model(
    tmp_path: Path, form: str, rename: Callable[[str], str] | None
) -> None:
    model = reference(MODELS["llama and clip"]())
    folder = save(model, tmp_path / "llava", max_shard_size="50KB" if form == "shards" else "5GB")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(name.startswith(("model.", "lm_head.")) for name in state)
    if form != "shards":
        (folder / "model.safetensors").unlink()
        named = {rename(name) if rename else name: tensor.contiguous() for name, tensor in state.items()}
        if form == "pickle":
            torch.save(named, folder / "pytorch_model.bin")
        else:
            save_file(named, folder / "model.safetensors")
    assert difference(convert(folder, tmp_path / "out"), model) <= TOLERANCE


TUNED = r"language_model.*(?:self_attn|mlp)\.|vision_tower.*q_proj|multi_modal_projector"


def test_an_adapter_of_peft_is_merged_into_all_parts(tmp_path: Path) -> None:
    """alpha over the root of the rank; both are others for some layers."""
    model = reference(MODELS["llama and clip"]())
    folder = save(model, tmp_path / "llava")
    adapter = PeftAdapter.random(
        model,
        TUNED,
        lambda layer: 2 if layer.endswith("q_proj") else 4,
        r=4,
        lora_alpha=3,
        use_rslora=True,
        rank_pattern={"q_proj": 2},
        alpha_pattern={r"model.language_model.layers.\d+.self_attn.k_proj|down_proj": 1},
    ).scaled(_rooted)
    out = convert(folder, tmp_path / "out", adapter.write(tmp_path / "adapter"))
    assert difference(out, adapter.merged(model)) <= TOLERANCE
    assert difference(out, model) > WRONG
    assert difference(out, adapter.scaled(lambda _: 3 / 4).merged(model)) > WRONG


def _rooted(layer: str) -> float:
    if layer.endswith("q_proj"):
        return 3 / 2**0.5
    language = "language_model" in layer and layer.endswith("k_proj")
    return (1 if language or layer.endswith("down_proj") else 3) / 4**0.5


def test_settings_of_pictures_may_lie_in_those_of_the_whole_processor(tmp_path: Path) -> None:
    """As transformers 5 writes them."""
    model = reference(MODELS["llama and clip"]())
    folder = save(model, tmp_path / "llava")
    pictures = CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    LlavaProcessor(pictures, tokenizer, patch_size=PATCH).save_pretrained(tmp_path / "processor")
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in str(look(folder).problems[0])
    shutil.copy(tmp_path / "processor" / "processor_config.json", folder)
    assert "image_processor" in json.loads((folder / "processor_config.json").read_text())
    out = convert(folder, tmp_path / "out")
    assert difference(out, model) <= TOLERANCE
    written = CLIPImageProcessorPil.from_pretrained(out / "vision")
    assert (written.crop_size, written.image_mean) == (pictures.crop_size, pictures.image_mean)


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path: Path) -> None:
    """With the picture's token beside it, as `added_tokens.json` has it; ids are the library's."""
    model = reference(MODELS["llama and clip"]())
    folder = save(model, tmp_path / "llava")
    (folder / "tokenizer.json").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=write_sentencepiece(folder))
    assert pieces.get_piece_size() == IMAGE
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": IMAGE}))
    out = convert(folder, tmp_path / "out")
    assert difference(out, model) <= TOLERANCE
    recipe = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu")).recipe
    served = ServingTokenizer(out / "llm" / TOKENIZER_NAME, add_bos=recipe.add_bos)
    medium = lay_out(recipe.seeing())
    prompt = served.encode(render(recipe.template, (Turn((medium, "how many circles?")),)))
    behind = pieces.encode("\nhow many circles? ASSISTANT:")[1:]  # without the space that begins every text
    wanted = [pieces.bos_id(), *pieces.encode("USER: "), *[0] * medium.rows, *behind]
    assert list(prompt.ids) == wanted
    assert AutoTokenizer.from_pretrained(out / "llm")("how many")["input_ids"] == [1, *pieces.encode("how many")]


def test_a_mistake_is_seen_in_the_logits(tmp_path: Path) -> None:
    model = reference(MODELS["llama and clip"]())
    folder = save(model, tmp_path / "llava")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"vision_feature_layer": -1}))
    assert difference(convert(folder, tmp_path / "out"), model) > WRONG


def test_prompts_are_those_of_the_chat_template(tmp_path: Path) -> None:
    """Ids as transformers makes them of the rendered conversation, whose picture is as many tokens as it has rows."""
    folder = save(reference(MODELS["llama and clip"]()), tmp_path / "llava")
    out = convert(folder, tmp_path / "out")
    recipe = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu")).recipe
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    picture = {"type": "image"}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "How many stars {text}?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
        {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    medium = lay_out(recipe.seeing())
    text = rendered.replace("<image>", "<image>" * medium.rows)
    wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
    served = ServingTokenizer(out / "llm" / TOKENIZER_NAME, add_bos=recipe.add_bos)
    turns = (Turn((medium, "How many stars {text}?"), "Three."), Turn(("Which colour?",)))
    prompt = served.encode(render(recipe.template, turns))
    (span,) = prompt.media
    found = list(prompt.ids)
    found[span.start : span.start + span.length] = [IMAGE] * medium.rows
    assert found == wanted
    assert recipe.add_bos
    assert recipe.eos_token_ids == (tokenizer.eos_token_id,)


def test_code_of_a_model_is_left_out(tmp_path: Path) -> None:
    folder = save(reference(MODELS["llama and clip"]()), tmp_path / "llava")
    document = json.loads((folder / "config.json").read_text())
    document["text_config"]["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "evil.py").write_text("raise SystemExit")
    out = convert(folder, tmp_path / "out")
    assert not any("auto_map" in path.read_text() for path in out.rglob("*.json"))
    assert not list(out.rglob("*.py"))


def drop(folder: Path, name: str) -> None:
    state = load_file(folder / "model.safetensors")
    (dropped,) = [found for found in state if found.endswith(name)]
    save_file({found: tensor for found, tensor in state.items() if found != dropped}, folder / "model.safetensors")


def add(folder: Path, name: str) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state | {name: torch.zeros(3)}, folder / "model.safetensors")


def edit(folder: Path, file: str, **changes: Any) -> None:
    document = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(document | changes))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: drop(f, "layers.1.mlp.gate_proj.weight"), "1 missing: model.layers.1.mlp.gate_proj.weight"),
        (lambda f: drop(f, "model.norm.weight"), "1 missing: model.norm.weight"),
        (lambda f: drop(f, "multi_modal_projector.linear_2.bias"), "1 missing: mm_projector.2.bias"),
        (lambda f: add(f, "image_newline"), "1 left over: image_newline"),
        (lambda f: add(f, "language_model.model.layers.2.mlp.up_proj.weight"), "which the model does not have"),
        (lambda f: edit(f, "config.json", vision_feature_layer=[-2, -5]), "vision_feature_layer"),
        (lambda f: edit(f, "config.json", projector_hidden_act="relu"), "projector_hidden_act"),
        (lambda f: edit(f, "config.json", text_config={"model_type": "gpt_neox"}), "text_config.model_type"),
        (lambda f: edit(f, "config.json", image_token_index=4000), "no token 4000 for pictures"),
        (lambda f: (f / "chat_template.jinja").write_text("{% for"), "cannot be rendered"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}"), "a picture"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_a_wrong_folder_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    folder = save(reference(MODELS["llama and clip"]()), tmp_path / "llava")
    damage(folder)
    (problem,) = look(folder).problems
    assert says in str(problem)


def test_what_does_not_belong_to_such_a_folder_is_refused(tmp_path: Path) -> None:
    folder = save(reference(MODELS["llama and clip"]()), tmp_path / "llava")
    assert "type neva" in str(look(folder, family=Family.LITA).problems[0])
    assert "llmType llama" in str(look(folder, llm_type=LlmType.GEMMA).problems[0])
    shutil.copytree(folder, tmp_path / "other")
    inspection, _, _ = inspect(
        CheckpointPaths(visual=folder, llm=tmp_path / "other"),
        family=Family.NEVA, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=None,
    )  # fmt: skip
    assert "llmCheckpoint" in str(inspection.problems[0])


def test_inspection_describes_the_folder(tmp_path: Path) -> None:
    folder = save(reference(MODELS["llama and clip"]()), tmp_path / "llava")
    found = look(folder, limits=Limits(vision_max_batch_size=1))
    assert found.problems == ()
    assert (found.layers, found.hidden_size, found.heads, found.key_value_heads) == (2, 48, 4, 2)
    assert (found.vocab_rows, found.vocab_size, found.tokens_per_image) == (ROWS, IMAGE + 1, (EDGE // PATCH) ** 2)
    assert found.tensor_parallel == (1, 2, 4)
    assert found.memory is not None


SMALL = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 512}
GPT = {"n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 512}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
LANGUAGE_MODELS: dict[str, tuple[LlmType, Callable[[], Any]]] = {
    "llama": (LlmType.LLAMA, lambda: LlamaConfig(**GROUPED)),
    "mistral": (LlmType.LLAMA, lambda: MistralConfig(**GROUPED, head_dim=20)),
    "mixtral": (LlmType.MIXTRAL, lambda: MixtralConfig(**GROUPED, num_local_experts=4)),
    "gemma": (LlmType.GEMMA, lambda: GemmaConfig(**GROUPED, head_dim=32)),
    "falcon, old": (LlmType.FALCON, lambda: FalconConfig(**SMALL, **ENDS, vocab_size=512)),
    "falcon, new": (
        LlmType.FALCON,
        lambda: FalconConfig(**SMALL, **ENDS, vocab_size=512, new_decoder_architecture=True, num_kv_heads=2),
    ),
    "starcoder": (LlmType.STARCODER, lambda: GPTBigCodeConfig(**GPT, **ENDS)),
    "starcoder2": (LlmType.STARCODER, lambda: Starcoder2Config(**GROUPED, **ENDS)),
    "nemotron": (LlmType.GPTNEXT, lambda: NemotronConfig(**GROUPED)),
    "gpt-2": (LlmType.GPT, lambda: GPT2Config(**GPT, **ENDS)),
}


def language_model(settings: Any, folder: Path) -> PreTrainedModel:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(settings).float().eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    model.save_pretrained(folder)
    return model


def projector_alone(folder: Path) -> Path:
    """The tiny NeVA's archive without its language model; the projector's width is that of the models here."""
    archive = Archive.read(CLASSIC).set_config("mm_cfg.llm.freeze", True)  # noqa: FBT003 -- a value, not a flag
    return keep_tensors(archive, lambda name: "mm_projector" in name).write(folder)


def beside(visual: Path, llm: Path, llm_type: LlmType) -> tuple[Inspection, Plan | None, ExitStack]:
    paths = CheckpointPaths(visual=visual, llm=llm)
    return inspect(paths, family=Family.NEVA, llm_type=llm_type, dtype=Dtype.FLOAT32, limits=None)


@pytest.mark.parametrize(("llm_type", "settings"), LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS)
def test_a_language_model_s_folder_scores_as_before(
    tmp_path: Path, llm_type: LlmType, settings: Callable[[], Any]
) -> None:
    model = language_model(settings(), tmp_path / "llm")
    inspection, plan, opened = beside(projector_alone(tmp_path), tmp_path / "llm", llm_type)
    assert inspection.problems == ()
    assert plan is not None
    with opened:
        write_canonical(plan, tmp_path / "out", root=tmp_path, dtype=None, on_bytes=lambda _: None)
    served = MultimodalModel.load(tmp_path / "out", dtype=torch.float32, device=torch.device("cpu"))
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "llm", output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.randint(0, 500, (1, 300), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = model(ids).logits
        found = served.llm.logits(served.llm.embed(ids[0])[None], served.llm.new_cache())
        assert torch.equal(loaded.float()(ids).logits, wanted)
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE


def test_an_adapter_of_peft_is_merged_into_gpt_2_s_turned_weights(tmp_path: Path) -> None:
    model = language_model(GPT2Config(**GPT, **ENDS, activation_function="gelu"), tmp_path / "llm")
    adapter = PeftAdapter.random(model, r"c_attn|c_proj|c_fc", lambda _: 3, transposed=True, r=3, lora_alpha=12)
    lora = adapter.scaled(lambda _: 4.0).write(tmp_path / "adapter", pickled=True)
    write_model(
        tmp_path / "out",
        CheckpointPaths(visual=projector_alone(tmp_path), llm=tmp_path / "llm", lora=lora),
        llm_type=LlmType.GPT,
    )
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "llm").float()
    ids = torch.randint(0, 500, (1, 200), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted, before = adapter.scaled(lambda _: 4.0).merged(model)(ids).logits, model(ids).logits
        logits = found(ids).logits
    assert float((logits - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE
    assert float((logits - before).abs().max() / wanted.abs().max()) > WRONG


def test_a_folder_of_another_type_or_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    language_model(GPT2Config(**GPT, **ENDS), tmp_path / "llm")
    visual = projector_alone(tmp_path)
    (problem,) = beside(visual, tmp_path / "llm", LlmType.LLAMA)[0].problems
    assert "set spec.model.llmType to gptnext or gpt or starcoder" in problem.remedy
    edit(tmp_path / "llm", "config.json", model_type="gpt_neox")
    (problem,) = beside(visual, tmp_path / "llm", LlmType.GPT)[0].problems
    assert "is 'gpt_neox'" in problem.problem


def test_a_body_without_a_head_has_shorter_names(tmp_path: Path) -> None:
    """As the first GPT-2 was published."""
    model = language_model(GPT2Config(**GPT, **ENDS), tmp_path / "llm")
    state = load_file(tmp_path / "llm" / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    masks = {f"h.{number}.attn.bias": torch.ones(1, 1, 4, 4) for number in range(2)}
    save_file(short | masks, tmp_path / "llm" / "model.safetensors")
    _, plan, opened = beside(projector_alone(tmp_path), tmp_path / "llm", LlmType.GPT)
    assert plan is not None
    with opened:
        write_canonical(plan, tmp_path / "out", root=tmp_path, dtype=None, on_bytes=lambda _: None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "llm").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
