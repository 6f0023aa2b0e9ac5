"""Where a tokenizer's files are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.config import ModelConfig
from multimodal_builder.checkpoints.nemo import open_checkpoint
from multimodal_builder.tokenizer_files import TokenizerFiles, read_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from support.archives import Archive


def read(path: Path) -> TokenizerFiles:
    with open_checkpoint(path, ModelConfig) as checkpoint:
        return read_tokenizer(checkpoint)


@pytest.mark.parametrize("named", ["tokenizer", "some-hub/tokenizer", "/training/machine/tokenizer"])
def test_a_hugging_face_tokenizer_lies_beside_the_archive(tmp_path: Path, classic: Archive, named: str) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        (folder / name).write_text(name)
    path = classic.set_config("tokenizer.library", "huggingface").set_config("tokenizer.type", named).write(tmp_path)
    assert read(path).content == {name: name.encode() for name in ("tokenizer.json", "tokenizer_config.json")}


def test_nemo_2_keeps_the_files_in_the_checkpoint(tmp_path: Path, classic: Archive) -> None:
    classic.members["context/nemo_tokenizer/tokenizer.json"] = b"{}"
    found = read(classic.set_config("tokenizer.library", "huggingface").write(tmp_path))
    assert found.content == {"tokenizer.json": b"{}"}
    assert found.at.startswith("model.nemo: context/")


def test_gpt_2_s_files_are_named_by_the_configuration(tmp_path: Path, classic: Archive) -> None:
    classic.members |= {"abc_vocab.json": b"{}", "abc_merges.txt": b"#"}
    classic.set_config("tokenizer.library", "megatron").set_config("tokenizer.type", "GPT2BPETokenizer")
    classic.set_config("tokenizer.vocab_file", "nemo:abc_vocab.json")
    path = classic.set_config("tokenizer.merge_file", "nemo:abc_merges.txt").write(tmp_path)
    assert read(path).content == {"vocab.json": b"{}", "merges.txt": b"#"}


def test_tiktoken_s_vocabulary_is_named_by_the_configuration(tmp_path: Path, classic: Archive) -> None:
    classic.members["abc_vocab.json"] = b"[]"
    path = classic.set_config("tokenizer.library", "tiktoken").set_config("tokenizer.vocab_file", "nemo:abc_vocab.json")
    assert read(path.write(tmp_path)).content == {"tiktoken.json": b"[]"}


def test_megatron_s_name_of_sentencepiece_is_one(tmp_path: Path, classic: Archive) -> None:
    classic.set_config("tokenizer.library", "megatron")
    path = classic.set_config("tokenizer.type", "GPTSentencePieceTokenizer").write(tmp_path)
    assert list(read(path).content) == ["tokenizer.model"]


@pytest.mark.parametrize(
    ("settings", "reason", "says"),
    [
        ({"library": "huggingface", "type": "nobody/nothing"}, Reason.CHECKPOINT_NOT_FOUND, "tokenizer.json"),
        ({"library": "huggingface", "type": None}, Reason.CHECKPOINT_CONFIG, "beside the checkpoint"),
        ({"library": "tabular"}, Reason.CHECKPOINT_CONFIG, "reads sentencepiece, huggingface, megatron, tiktoken"),
        ({"library": "tiktoken"}, Reason.CHECKPOINT_CONFIG, "vocab_file"),
        ({"library": "megatron", "vocab_file": None}, Reason.CHECKPOINT_CONFIG, "vocab_file"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, classic: Archive, settings: dict[str, object], reason: Reason, says: str
) -> None:
    for key, value in settings.items():
        classic.set_config(f"tokenizer.{key}", value)
    with pytest.raises(ProductError, match=says) as caught:
        read(classic.write(tmp_path))
    assert caught.value.failure.reason is reason


@pytest.mark.parametrize(
    ("value", "tokens"),
    [(None, ()), (["<a>"], ("<a>",)), ({"additional_special_tokens": ["<a>", "<b>"]}, ("<a>", "<b>"))],
)
def test_tokens_that_training_added_are_a_list_or_in_a_dictionary(
    tmp_path: Path, classic: Archive, value: object, tokens: tuple[str, ...]
) -> None:
    path = classic.set_config("tokenizer.additional_special_tokens", value).write(tmp_path)
    with open_checkpoint(path, ModelConfig) as checkpoint:
        assert checkpoint.config.tokenizer.additional_special_tokens == tokens
