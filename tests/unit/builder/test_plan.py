"""Every bad input of a checkpoint: one message, with the place, the value and the remedy, and nothing written."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from multimodal_api.engine import Dtype, Limits
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.inspection import Inspection, inspect
from support.archives import CKPT, CONFIG, Archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EMBEDDING = "model.embedding.word_embeddings.weight"
PROJECTOR = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector.0.bias"


def look(
    path: Path, *, family: Family = Family.NEVA, llm: LlmType = LlmType.LLAMA, limits: Limits | None = None
) -> Inspection:
    paths = CheckpointPaths(visual=path)
    inspection, plan, opened = inspect(paths, family=family, llm_type=llm, dtype=Dtype.FLOAT32, limits=limits)
    opened.close()
    assert (plan is None) == bool(inspection.problems)
    return inspection


def test_both_layouts_of_the_tiny_model_are_understood(tmp_path: Path, either: Callable[[], Archive]) -> None:
    found = look(either().write(tmp_path), limits=Limits(vision_max_batch_size=1))
    assert found.problems == ()
    assert (found.layers, found.heads, found.key_value_heads, found.vocab_size, found.vocab_rows) == (2, 4, 2, 500, 512)
    assert (found.image_size, found.tokens_per_image, found.prompt_tokens) == (48, 36, 12)
    assert found.memory is not None
    assert found.memory.cache == 2 * 2 * 2 * 24 * 4 * (4096 + 256)


def test_the_tower_is_taken_from_the_archive_where_it_is_in_it(
    tmp_path: Path, classic: Archive, distributed: Archive
) -> None:
    assert look(distributed.write(tmp_path)).tower_in_checkpoint is True
    assert look(classic.write(tmp_path)).tower_in_checkpoint is False


@pytest.mark.parametrize(
    ("key", "value", "reason", "says"),
    [
        ("num_layers", ..., Reason.CHECKPOINT_CONFIG, "num_layers is missing"),
        ("mm_cfg", ..., Reason.CHECKPOINT_CONFIG, "mm_cfg is missing"),
        ("mm_cfg.vision_encoder.from_pretrained", ..., Reason.CHECKPOINT_CONFIG, "from_pretrained is missing"),
        ("hidden_size", "wide", Reason.CHECKPOINT_CONFIG, "hidden_size is 'wide'"),
        ("num_layers", 0, Reason.CHECKPOINT_CONFIG, "num_layers is 0"),
        ("ffn_hidden_size", "${multiply:4,96}", Reason.CHECKPOINT_CONFIG, "ffn_hidden_size is '${multiply:4,96}'"),
        (
            "activation",
            "gelu",
            Reason.UNSUPPORTED_MODEL,
            "is 'gelu', but llmType llama (LlamaForCausalLM) needs swiglu",
        ),
        ("normalization", "layernorm1p", Reason.UNSUPPORTED_MODEL, "is 'layernorm1p', but"),
        ("bias", True, Reason.CHECKPOINT_WEIGHTS, "missing: model.layers.0.self_attn.q_proj.bias"),
        ("position_embedding_type", "learned_absolute", Reason.UNSUPPORTED_MODEL, "needs rope"),
        ("rotary_percentage", 0.5, Reason.UNSUPPORTED_MODEL, "is 0.5"),
        ("num_moe_experts", 8, Reason.CHECKPOINT_CONFIG, "is 8, but llmType llama (LlamaForCausalLM) needs null or 0"),
        ("num_attention_heads", 5, Reason.CHECKPOINT_CONFIG, "cannot be shared out"),
        ("num_query_groups", 3, Reason.CHECKPOINT_CONFIG, "cannot be shared out"),
        ("rotary_interleaved", True, Reason.UNSUPPORTED_MODEL, "is True, but this version rotates the halves"),
        ("normalize_attention_scores", False, Reason.UNSUPPORTED_MODEL, "square root of the head size"),
        ("transformer_block_type", "post_ln", Reason.UNSUPPORTED_MODEL, "is 'post_ln'"),
        ("apply_embedding_scaling", True, Reason.UNSUPPORTED_MODEL, "is True, but llmType llama"),
        ("mcore_customization_config", {"parallel_attention": True}, Reason.UNSUPPORTED_MODEL, "needs false"),
        ("openai_gelu", True, Reason.UNSUPPORTED_MODEL, "is True, but llmType llama"),
        ("mm_cfg.use_lita", True, Reason.CHECKPOINT_CONFIG, "neva"),
        ("data.media_type", "video", Reason.CHECKPOINT_CONFIG, "neva has image"),
        ("data.conv_template", "interleaved", Reason.UNSUPPORTED_MODEL, "'interleaved'"),
        ("data.image_aspect_ratio", "keep", Reason.CHECKPOINT_CONFIG, "'keep'"),
        ("data.image_aspect_ratio", "anyres", Reason.CHECKPOINT_CONFIG, "'anyres' is not implemented"),
        ("mm_cfg.mm_mlp_adapter_type", "qformer", Reason.UNSUPPORTED_MODEL, "'qformer' is no projector"),
        ("mm_cfg.mm_mlp_adapter_type", "mlp_downsample", Reason.CHECKPOINT_WEIGHTS, "missing: mm_projector.1.weight"),
        ("mm_cfg.mm_mlp_adapter_type", "identity", Reason.CHECKPOINT_CONFIG, "the tower is 64 wide"),
        ("mm_cfg.vision_encoder.class_token_length", 37, Reason.CHECKPOINT_CONFIG, "1 class tokens and 36 patches"),
        ("mm_cfg.vision_encoder.from_hf", False, Reason.CHECKPOINT_CONFIG, "'clip' is the folder of a Hugging Face"),
        ("mm_cfg.vision_encoder.vision_select_feature", "cls", Reason.CHECKPOINT_CONFIG, "'cls'"),
        ("mm_cfg.vision_encoder.vision_select_layer", -6, Reason.CHECKPOINT_CONFIG, "has 4 layers"),
        ("mm_cfg.vision_encoder.patch_dim", 14, Reason.CHECKPOINT_CONFIG, "is 14, but the tower's is 8"),
        ("mm_cfg.vision_encoder.hidden_size", 1024, Reason.CHECKPOINT_CONFIG, "is 1024, but the tower's is 64"),
        ("mm_cfg.vision_encoder.crop_size", [336, 336], Reason.CHECKPOINT_CONFIG, "(336, 336)"),
        ("mm_cfg.vision_encoder.from_pretrained", "nobody/nothing", Reason.CHECKPOINT_NOT_FOUND, "nobody/nothing"),
        ("tokenizer.library", "huggingface", Reason.CHECKPOINT_CONFIG, "tokenizer.type: is missing"),
        ("tokenizer.library", "char", Reason.CHECKPOINT_CONFIG, "is 'char', but this version reads sentencepiece"),
        ("tokenizer.library", "megatron", Reason.CHECKPOINT_CONFIG, "tokenizer.vocab_file"),
        ("tokenizer.special_tokens", {"pad_token": "<p>"}, Reason.UNSUPPORTED_MODEL, "renamed"),
        ("tokenizer.model", "/data/tok.model", Reason.CHECKPOINT_CONFIG, "/data/tok.model"),
        ("tokenizer.model", "nemo:absent.model", Reason.CHECKPOINT_UNREADABLE, "no such member"),
        ("tokenizer.additional_special_tokens", ["<x>"], Reason.CHECKPOINT_CONFIG, "<x>"),
        ("num_layers", 3, Reason.CHECKPOINT_WEIGHTS, "missing: model.layers.2."),
        ("num_layers", 1, Reason.CHECKPOINT_WEIGHTS, "sets model.layers.1."),
        ("ffn_hidden_size", 200, Reason.CHECKPOINT_WEIGHTS, "the model has [200, 96]"),
        ("num_attention_heads", 8, Reason.CHECKPOINT_WEIGHTS, "q_proj"),
        ("share_embeddings_and_output_weights", True, Reason.CHECKPOINT_WEIGHTS, "sets lm_head.weight"),
        ("max_position_embeddings", 57, Reason.CHECKPOINT_CONFIG, "is 57, but the first question of a server"),
    ],
)
def test_a_wrong_configuration_is_explained(
    tmp_path: Path, either: Callable[[], Archive], key: str, value: object, reason: Reason, says: str
) -> None:
    found = look(either().set_config(key, value).write(tmp_path), limits=Limits(vision_max_batch_size=1))
    assert says in "\n".join(map(str, found.problems))
    assert {problem.reason for problem in found.problems if says in str(problem)} == {reason}
    assert all(problem.at and problem.remedy for problem in found.problems)


def test_experts_whose_weights_do_not_sum_to_one_are_refused(tmp_path: Path, classic: Archive) -> None:
    classic.set_config("num_moe_experts", 8)
    assert not any("sum to one" in str(p) for p in look(classic.write(tmp_path), llm=LlmType.MIXTRAL).problems)
    classic.set_config("moe_router_pre_softmax", value=True)
    (problem,) = look(classic.write(tmp_path), llm=LlmType.MIXTRAL).problems
    assert problem.at.endswith("moe_router_pre_softmax")
    assert "sum to one" in problem.problem


def test_all_problems_are_told_at_once(tmp_path: Path, classic: Archive) -> None:
    classic.set_config("activation", "gelu").set_config("normalization", "layernorm")
    classic.set_config("mm_cfg.vision_encoder.from_pretrained", "nobody/nothing")
    assert len(look(classic.write(tmp_path)).problems) == 3


def test_several_wrong_keys_are_named_together(tmp_path: Path, classic: Archive) -> None:
    (problem,) = look(classic.set_config("num_layers", ...).set_config("hidden_size", -1).write(tmp_path)).problems
    assert "num_layers is missing" in problem.problem
    assert "hidden_size is -1" in problem.problem


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1, 2", Reason.CHECKPOINT_UNREADABLE),
        (b"- a list", Reason.CHECKPOINT_UNREADABLE),
        (b"!!python/object/apply:os.system ['touch /tmp/owned']", Reason.CHECKPOINT_UNSAFE),
        (b"a: !custom 1", Reason.CHECKPOINT_UNSAFE),
        (b"[" * 200_000, Reason.CHECKPOINT_UNSAFE),
        (b"a: " + b"{a: " * 200_000, Reason.CHECKPOINT_UNSAFE),
        (
            b"a: &a [1, 1]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (n, n, n - 1, n - 1) for n in range(98, 122)),
            Reason.CHECKPOINT_UNSAFE,
        ),
        (b"a: &a [*a]", Reason.CHECKPOINT_UNSAFE),
        (b"#" * 2**21, Reason.CHECKPOINT_UNSAFE),
        (b"\x80abc", Reason.CHECKPOINT_UNREADABLE),
    ],
    ids=[
        "no yaml",
        "no mapping",
        "an object",
        "a tag",
        "deep",
        "deep keys",
        "aliases",
        "itself",
        "too large",
        "no text",
    ],
)
def test_a_configuration_that_is_none_is_refused(
    tmp_path: Path, classic: Archive, content: bytes, reason: Reason
) -> None:
    classic.members[CONFIG] = content
    (problem,) = look(classic.write(tmp_path)).problems
    assert problem.reason is reason
    assert CONFIG in problem.at


@pytest.mark.parametrize("missing", [CONFIG, CKPT])
def test_an_archive_without_a_part_is_refused(tmp_path: Path, classic: Archive, missing: str) -> None:
    del classic.members[missing]
    (problem,) = look(classic.write(tmp_path)).problems
    assert problem.reason is Reason.CHECKPOINT_UNREADABLE
    assert missing in problem.problem


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def with_pickle(ckpt: bytes, content: bytes) -> bytes:
    """Put another pickle into a `torch.save` file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ckpt)) as before, zipfile.ZipFile(packed, "w") as after:
        for name in before.namelist():
            after.writestr(name, content if name.endswith("/data.pkl") else before.read(name))
    return packed.getvalue()


@pytest.mark.parametrize("form", ["ckpt", "torch_dist"])
def test_an_unexpected_global_is_named_with_its_member_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classic: Archive, distributed: Archive, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    attack = pickle.dumps({"w": Malicious()}, protocol=2)
    if form == "ckpt":
        archive, member = classic, f"{CKPT}: data.pkl"
        archive.members[CKPT] = with_pickle(archive.members[CKPT], attack)
    else:
        archive, member = distributed, "model_weights/.metadata"
        archive.members[member] = attack
    (problem,) = look(archive.write(tmp_path)).problems
    assert problem.reason is Reason.CHECKPOINT_UNSAFE
    assert problem.at == f"model.nemo: {member}"
    assert "posix.system" in problem.problem
    assert not (tmp_path / "owned").exists()


def test_nothing_at_the_path_is_said_so(tmp_path: Path) -> None:
    (problem,) = look(tmp_path / "absent.nemo").problems
    assert problem.reason is Reason.CHECKPOINT_NOT_FOUND
    assert "absent.nemo" in problem.at


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state, _: state.pop(EMBEDDING), "this tensor is missing"),
        (lambda state, t: state.update({EMBEDDING: t.zeros(100, 96)}), "100 rows for a tokenizer of 500"),
        (lambda state, _: state.pop(PROJECTOR), "1 missing: mm_projector.0.bias"),
        (lambda state, t: state.update({"model.surprise": t.zeros(1)}), "1 left over: model.surprise"),
        (lambda state, t: state.update({PROJECTOR: t.zeros(5)}), "the model has [96]"),
    ],
    ids=["no embedding", "a short embedding", "no projector", "one too many", "another shape"],
)
def test_weights_missing_or_too_many_are_listed(
    tmp_path: Path, classic: Archive, change: Callable[[dict[str, Any], Any], object], says: str
) -> None:
    torch = pytest.importorskip("torch")
    state = torch.load(io.BytesIO(classic.members[CKPT]))
    change(state, torch)
    packed = io.BytesIO()
    torch.save(state, packed)
    classic.members[CKPT] = packed.getvalue()
    (problem,) = look(classic.write(tmp_path)).problems
    assert problem.reason is Reason.CHECKPOINT_WEIGHTS
    assert says in str(problem)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (
            Limits(vision_max_batch_size=1, max_multimodal_len=35),
            "spec.limits.maxMultimodalLen: is 35, but one medium takes 36",
        ),
        (
            Limits(vision_max_batch_size=1, max_input_len=55),
            "is 55, but the first question of a server takes 36 positions for its medium and 20 for its words",
        ),
    ],
)
def test_limits_that_no_question_fits_are_refused(tmp_path: Path, classic: Archive, limits: Limits, says: str) -> None:
    problems = look(classic.write(tmp_path), limits=limits).problems
    assert [problem.reason for problem in problems] == [Reason.LIMITS_TOO_SMALL]
    assert says in str(problems[0])


def test_limits_that_just_fit_are_accepted(tmp_path: Path, classic: Archive) -> None:
    limits = Limits(vision_max_batch_size=1, max_multimodal_len=36, max_input_len=56)
    assert look(classic.write(tmp_path), limits=limits).problems == ()


def test_a_checkpoint_that_sees_is_none_that_hears(tmp_path: Path, classic: Archive) -> None:
    (problem,) = look(classic.write(tmp_path), family=Family.SALM).problems
    assert problem.reason is Reason.CHECKPOINT_CONFIG
    assert "perception is missing" in problem.problem


@pytest.mark.parametrize("llm", [llm for llm in LlmType if llm is not LlmType.LLAMA])
def test_another_type_than_the_checkpoints_is_found_and_the_right_one_named(
    tmp_path: Path, classic: Archive, llm: LlmType
) -> None:
    problems = look(classic.write(tmp_path), llm=llm).problems
    assert {problem.remedy for problem in problems} == {"set spec.model.llmType to llama"}
    assert all(f"llmType {llm}" in problem.problem for problem in problems)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("config.json", {"model_type": "dinov2"}, "'dinov2' is no vision tower"),
        ("config.json", {"model_type": None}, "None is no vision tower"),
        ("config.json", {"hidden_size": 0}, "hidden_size"),
        ("preprocessor_config.json", {"crop_size": {"height": 32, "width": 32}}, "pictures of 32 pixels"),
        ("preprocessor_config.json", {"crop_size": {"height": 32, "width": 48}}, "no square"),
        ("preprocessor_config.json", {"do_normalize": False}, "normalisation"),
        ("preprocessor_config.json", {"image_mean": None}, "image_mean"),
    ],
)
def test_a_tower_that_does_not_fit_is_explained(
    tmp_path: Path, classic: Archive, file: str, changes: dict[str, object], says: str
) -> None:
    path = classic.write(tmp_path)
    edit_json(tmp_path / "clip" / file, **changes)
    (problem,) = look(path).problems
    assert problem.reason is Reason.CHECKPOINT_CONFIG
    assert file in problem.at
    assert says in str(problem)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "model.safetensors"])
def test_a_tower_without_a_file_is_not_found(tmp_path: Path, classic: Archive, file: str) -> None:
    path = classic.write(tmp_path)
    (tmp_path / "clip" / file).unlink()
    (problem,) = look(path).problems
    assert problem.reason is Reason.CHECKPOINT_NOT_FOUND
    assert file in str(problem)


def test_a_damaged_tower_is_refused(tmp_path: Path, classic: Archive) -> None:
    path = classic.write(tmp_path)
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (problem,) = look(path).problems
    assert problem.reason is Reason.CHECKPOINT_UNREADABLE
    assert "model.safetensors" in problem.at


@pytest.mark.parametrize("named", ["clip", "../training/machine/clip", "/somewhere/else/clip"])
def test_the_tower_is_found_beside_the_archive(tmp_path: Path, classic: Archive, named: str) -> None:
    classic.set_config("mm_cfg.vision_encoder.from_pretrained", named)
    assert look(classic.write(tmp_path)).problems == ()


def test_the_tower_is_found_at_an_absolute_path(tmp_path: Path, classic: Archive) -> None:
    elsewhere = tmp_path / "towers" / "mine"
    classic.set_config("mm_cfg.vision_encoder.from_pretrained", str(elsewhere))
    path = classic.write(tmp_path)
    shutil.move(tmp_path / "clip", elsewhere)
    assert look(path).problems == ()


def test_an_unpacked_checkpoint_is_the_same(tmp_path: Path, either: Callable[[], Archive]) -> None:
    archive = either()
    archive.write(tmp_path)
    folder = tmp_path / "unpacked"
    for name, content in archive.members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert look(folder).problems == ()
    (folder / "more").symlink_to("/etc/passwd")
    (problem,) = look(folder).problems
    assert problem.reason is Reason.CHECKPOINT_UNSAFE


def test_tokens_that_are_no_square_cannot_be_joined(tmp_path: Path, classic: Archive) -> None:
    """The class token left in: NeMo's own reshape fails, or shifts the grid."""
    classic.set_config("mm_cfg.mm_mlp_adapter_type", "mlp_downsample")
    classic.set_config("mm_cfg.vision_encoder.vision_select_feature", "cls_patch")
    (problem,) = look(classic.write(tmp_path)).problems
    assert problem.reason is Reason.CHECKPOINT_CONFIG
    assert "37 tokens of a picture are no square" in problem.problem
