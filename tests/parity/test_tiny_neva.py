"""The committed tiny NeVA, read with torch's own readers: none of the product's code is used here."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import nemo_writer
from tiny.neva import evaluate
from tiny.neva.config import model_config
from tiny.neva.model import AFTER_MEDIA, BEFORE_MEDIA, PATCHES, VOCAB, Prompter
from tiny.pictures import Question, scenes
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

pytestmark = pytest.mark.parity

NEVA = Path(__file__).resolve().parents[2] / "examples/tiny/neva"
CLIP = NEVA / "clip"
LIMIT = 2 * 2**20  # bytes; what a file beside its script may weigh
ENOUGH = 0.95
TOWER = "model.embedding.word_embeddings.vision_encoder."
PROJECTOR = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive read back; `state` has the classic names whichever layout it came from."""

    config: dict[str, Any]
    tokenizer: bytes
    state: dict[str, Tensor]
    members: tuple[str, ...]


def read_distributed(folder: Path) -> dict[str, Tensor]:
    reader = FileSystemReader(folder)
    listed = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {}
    for name, stored in listed.items():
        assert isinstance(stored, TensorStorageMetadata)
        state[name] = torch.full(stored.size, float("nan"), dtype=stored.properties.dtype)
    load(state, storage_reader=reader, no_dist=True)
    return state


def read_archive(path: Path, scratch: Path) -> Archive:
    with tarfile.open(path, "r:") as archive:  # `r:` takes no compression
        members = tuple(archive.getnames())
        archive.extractall(scratch, filter="data")
    config = yaml.safe_load((scratch / "model_config.yaml").read_text())
    reference = config["tokenizer"]["model"]
    assert reference.startswith("nemo:")
    if (scratch / "model_weights").is_dir():
        state = unstack(read_distributed(scratch / "model_weights"))
    else:
        state = torch.load(scratch / "model_weights.ckpt", weights_only=True)
    return Archive(config, (scratch / reference.removeprefix("nemo:")).read_bytes(), state, members)


def unstack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The classic names of a distributed state: `decoder.layers.KEY` [layers, …] to `decoder.layers.N.KEY`."""
    prefix = "model.decoder.layers."
    classic = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    for name, tensor in state.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            classic |= {f"{prefix}{number}.{rest}": layer for number, layer in enumerate(tensor)}
    return classic


def llama_of(state: dict[str, Tensor], config: dict[str, Any], vocab: int) -> dict[str, Tensor]:
    """A Hugging Face Llama's tensors, undone from the classic names by the documented row order."""
    heads, groups, hidden = config["num_attention_heads"], config["num_query_groups"], config["hidden_size"]
    llama = {
        "model.embed_tokens.weight": state["model.embedding.word_embeddings.weight"][:vocab],
        "lm_head.weight": state["model.output_layer.weight"][:vocab],
        "model.norm.weight": state["model.decoder.final_layernorm.weight"],
    }
    for layer in range(config["num_layers"]):
        nemo, hf = f"model.decoder.layers.{layer}.", f"model.layers.{layer}."
        rows = state[f"{nemo}self_attention.linear_qkv.weight"].view(groups, heads // groups + 2, -1, hidden)
        gate, up = state[f"{nemo}mlp.linear_fc1.weight"].chunk(2)
        llama |= {
            f"{hf}input_layernorm.weight": state[f"{nemo}self_attention.linear_qkv.layer_norm_weight"],
            f"{hf}self_attn.q_proj.weight": rows[:, :-2].reshape(-1, hidden),
            f"{hf}self_attn.k_proj.weight": rows[:, -2].reshape(-1, hidden),
            f"{hf}self_attn.v_proj.weight": rows[:, -1].reshape(-1, hidden),
            f"{hf}self_attn.o_proj.weight": state[f"{nemo}self_attention.linear_proj.weight"],
            f"{hf}post_attention_layernorm.weight": state[f"{nemo}mlp.linear_fc1.layer_norm_weight"],
            f"{hf}mlp.gate_proj.weight": gate,
            f"{hf}mlp.up_proj.weight": up,
            f"{hf}mlp.down_proj.weight": state[f"{nemo}mlp.linear_fc2.weight"],
        }
    return llama


def tower_of(archive: Archive) -> dict[str, Tensor]:
    """The tower inside the archive, else the one its configuration names."""
    inside = {name.removeprefix(TOWER): value for name, value in archive.state.items() if name.startswith(TOWER)}
    return inside or load_file(
        NEVA / archive.config["mm_cfg"]["vision_encoder"]["from_pretrained"] / "model.safetensors"
    )


def assemble(archive: Archive) -> evaluate.Model:
    """The archive as a LLaVA of transformers, built from the archive's configuration; every tensor is set."""
    config, prompter = archive.config, Prompter.from_bytes(archive.tokenizer)
    vocab = prompter.tokenizer.vocab_size()
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=config["hidden_size"],
        intermediate_size=config["ffn_hidden_size"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_query_groups"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["layernorm_epsilon"],
        rope_theta=config["rotary_base"],
        tie_word_embeddings=config["share_embeddings_and_output_weights"],
    )
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig.from_pretrained(CLIP),
            text_config=text,
            image_token_index=prompter.image_id,
            vision_feature_layer=config["mm_cfg"]["vision_encoder"]["vision_select_layer"],
            tie_word_embeddings=False,
        )
    ).float()
    llama = llama_of(archive.state, config, vocab)
    full = {f"model.language_model.{name.removeprefix('model.')}": tensor for name, tensor in llama.items()}
    full["lm_head.weight"] = full.pop("model.language_model.lm_head.weight")
    for name, number in (("linear_1", 0), ("linear_2", 2)):
        for kind in ("weight", "bias"):
            full[f"model.multi_modal_projector.{name}.{kind}"] = archive.state[f"{PROJECTOR}{number}.{kind}"]
    for name, tensor in tower_of(archive).items():
        full[f"model.vision_tower.{name.removeprefix('vision_model.')}"] = tensor
    llava.load_state_dict(full, strict=True)
    return evaluate.Model(llava, CLIPImageProcessorPil.from_pretrained(CLIP), prompter)


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return read_archive(NEVA / "neva.nemo", tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return read_archive(NEVA / "neva_ckpt.nemo", tmp_path_factory.mktemp("classic"))


def test_the_distributed_archive_has_the_members_that_nemo_2_writes(distributed: Archive) -> None:
    tokenizer = distributed.config["tokenizer"]["model"].removeprefix("nemo:")
    assert set(distributed.members) == {
        ".",
        f"./{tokenizer}",
        "./model_config.yaml",
        "./model_weights",
        *(
            f"./model_weights/{name}"
            for name in (".metadata", "__0_0.distcp", "__0_1.distcp", "common.pt", "metadata.json")
        ),
    }


def test_the_classic_archive_has_the_members_that_nemo_1_wrote(classic: Archive) -> None:
    tokenizer = classic.config["tokenizer"]["model"].removeprefix("nemo:")
    assert set(classic.members) == {".", f"./{tokenizer}", "./model_config.yaml", "./model_weights.ckpt"}


def test_the_committed_files_are_small() -> None:
    clip = sum(file.stat().st_size for file in CLIP.iterdir())
    held_out = sum(file.stat().st_size for file in (NEVA / "heldout").iterdir())
    assert {
        name: size
        for name, size, limit in (
            ("neva.nemo", (NEVA / "neva.nemo").stat().st_size, LIMIT),
            ("neva_ckpt.nemo", (NEVA / "neva_ckpt.nemo").stat().st_size, LIMIT),
            ("clip", clip, LIMIT),
            ("heldout", held_out, 200 * 2**10),
        )
        if size > limit
    } == {}


def test_the_tower_is_stored_only_where_it_was_trained(distributed: Archive, classic: Archive) -> None:
    def freeze(archive: Archive) -> bool:
        return bool(archive.config["mm_cfg"]["vision_encoder"]["freeze"])

    inside = [tensor for name, tensor in distributed.state.items() if name.startswith(TOWER)]
    assert not freeze(distributed)
    assert {tensor.dtype for tensor in inside} == {torch.bfloat16}
    assert freeze(classic)
    assert not any(name.startswith(TOWER) for name in classic.state)


def test_both_archives_hold_the_same_model(distributed: Archive, classic: Archive) -> None:
    one = {name: tensor for name, tensor in distributed.state.items() if not name.startswith(TOWER)}
    other = classic.state
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    first, second = tower_of(distributed), tower_of(classic)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert distributed.tokenizer == classic.tokenizer


def test_the_vocabulary_is_padded_with_untrained_rows(distributed: Archive) -> None:
    rows = distributed.state["model.embedding.word_embeddings.weight"]
    assert rows.shape[0] % distributed.config["make_vocab_size_divisible_by"] == 0
    assert rows.shape[0] > VOCAB
    assert rows[VOCAB:].std() == pytest.approx(distributed.config["init_method_std"], rel=0.1)


def test_a_prompt_has_the_ids_of_nemos_training_text(distributed: Archive) -> None:
    """NeMo encodes the whole text with the media span in it; the prompt is encoded in two pieces around the span."""
    prompter = Prompter.from_bytes(distributed.tokenizer)
    span = "<extra_id_4>" + "<extra_id_3>" * (PATCHES - 2) + "<extra_id_5>"
    question = "How many squares are there?"
    trained = prompter.tokenizer.encode(BEFORE_MEDIA + span + AFTER_MEDIA.format(question=question))
    media = range(prompter.media_start, prompter.media_start + PATCHES)
    asked = prompter.prompt(question)
    assert [(at, token) for at, token in enumerate(trained) if at not in media] == [
        (at, token) for at, token in enumerate(asked) if at not in media
    ]
    assert {asked[at] for at in media} == {prompter.image_id}


def test_held_out_questions_are_answered_right(distributed: Archive) -> None:
    asked = evaluate.take(evaluate.cases(3, held_out=True), 200)
    wrong = evaluate.wrong_answers(assemble(distributed), asked)
    assert len(wrong) <= (1 - ENOUGH) * len(asked), [(case.question, answer) for case, answer in wrong]


def test_the_pictures_beside_the_model_are_all_answered_right(classic: Archive) -> None:
    folder = NEVA / "heldout"
    asked = [
        evaluate.Case(Image.open(folder / each["picture"]), Question(each["question"], each["answer"]), "listed")
        for each in json.loads((folder / "heldout.json").read_text())
    ]
    wrong = evaluate.wrong_answers(assemble(classic), asked)
    assert [(case.question, answer) for case, answer in wrong] == []


def test_a_held_out_composition_is_never_trained_on() -> None:
    def compositions(*, held_out: bool) -> set[str]:
        source = scenes(5, held_out=held_out)
        return {next(source).composition for _ in range(3000)}

    assert compositions(held_out=True).isdisjoint(compositions(held_out=False))


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 3), (4, 4), (4, 1)])
def test_the_writer_keeps_every_number_in_both_layouts(heads: int, groups: int, tmp_path: Path) -> None:
    hidden, vocab, layers, padded = heads * 4, 20, 3, 32
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
        )
    ).state_dict()
    projector = {f"linear_{n}.{kind}": torch.randn(2, 2) for n in (1, 2) for kind in ("weight", "bias")}
    tower = {"vision_model.post_layernorm.weight": torch.randn(8)}
    shape = nemo_writer.LlamaShape(layers, heads, groups, padded)
    config = {"num_attention_heads": heads, "num_query_groups": groups, "hidden_size": hidden, "num_layers": layers}

    stacked = nemo_writer.distributed_state(llama, projector, tower, shape)
    nemo_writer.write_distributed(tmp_path / "model_weights", stacked)
    read = read_distributed(tmp_path / "model_weights")
    assert read.keys() == stacked.keys()
    assert read[f"{TOWER}vision_model.post_layernorm.weight"].dtype == torch.bfloat16
    flat = nemo_writer.classic_state(llama, projector, shape)
    for back in (llama_of(unstack(read), config, vocab), llama_of(flat, config, vocab)):
        assert back.keys() == llama.keys()
        assert [name for name in llama if not torch.equal(back[name], llama[name])] == []


def test_fc1_is_stored_in_two_chunks_per_layer(tmp_path: Path) -> None:
    with tarfile.open(NEVA / "neva.nemo") as archive:
        archive.extractall(tmp_path, filter="data")
    listed = FileSystemReader(tmp_path / "model_weights").read_metadata().state_dict_metadata
    stored = listed["model.decoder.layers.mlp.linear_fc1.weight"]
    assert isinstance(stored, TensorStorageMetadata)
    layers, rows, hidden = stored.size
    assert sorted(tuple(chunk.offsets) for chunk in stored.chunks) == [
        (layer, half * rows // 2, 0) for layer in range(layers) for half in range(2)
    ]
    assert {tuple(chunk.sizes) for chunk in stored.chunks} == {(1, rows // 2, hidden)}


@pytest.mark.parametrize("kind", [True, False], ids=["distributed", "classic"])
def test_the_same_model_gives_the_same_archive(*, kind: bool, tmp_path: Path) -> None:
    # Many tensors, written many times: two threads write a distributed archive, and either may end first.
    state = {f"model.decoder.layers.{number}.weight": torch.randn(2, 8, 4) for number in range(30)}
    path, config = tmp_path / "tiny.nemo", model_config(distributed=kind)
    written = set()
    for _ in range(10):
        nemo_writer.write_archive(path, config=config, tokenizer=b"pieces", state=state, distributed=kind)
        written.add(path.read_bytes())
    assert len(written) == 1


@pytest.mark.train
@pytest.mark.timeout(5400)
def test_the_script_still_makes_a_model_as_good(tmp_path: Path) -> None:
    script = NEVA / "train.py"
    done = subprocess.run([sys.executable, os.fspath(script), "--out", os.fspath(tmp_path)], check=False)
    assert done.returncode == 0
    (tmp_path / "unpacked").mkdir()
    made = read_archive(tmp_path / "neva.nemo", tmp_path / "unpacked")
    asked = evaluate.take(evaluate.cases(4, held_out=True), 200)
    wrong = evaluate.wrong_answers(assemble(made), asked)
    assert len(wrong) <= (1 - ENOUGH) * len(asked), [(case.question, answer) for case, answer in wrong]
    assert (tmp_path / "neva.nemo").stat().st_size <= LIMIT
