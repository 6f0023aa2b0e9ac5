"""Converted tokenizers against transformers' own, loaded as NeMo loads them: ids of prompts, and texts read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_builder.templates import CONVERSATIONS, SEQUENCE_MARKS, media_marks, prompt_template
from multimodal_builder.tokenizer import SAMPLES, ConvertedTokenizer, Usage
from multimodal_builder.tokenizer_files import TokenizerFiles, convert_tokenizer
from multimodal_recipes.prompt import MediaSlot, Medium, Turn, render
from multimodal_recipes.tokenizer import Tokenizer as ServingTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.parity

EXTRA = tuple(f"<extra_id_{number}>" for number in range(10))
TIMES = tuple(f"<t{number}>" for number in range(5))
TEXT = [
    "How many red circles are there? Three, left of the blue square.",
    "You are a helpful language and vision assistant, and this is a chat between a user and an assistant.",
] * 20
TURNS = (
    Turn((Medium((MediaSlot(2),)), "Hi! Who are you?"), answer="The red circle! "),
    Turn(("  two  spaces, naïve 🙂\n",)),
)


def train(tokenizer: Tokenizer, size: int = 400) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """Of Llama 3's kind."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer)


def llama_3(folder: Path, *, added: tuple[str, ...] = (*EXTRA, *TIMES)) -> None:
    tokenizer = byte_level()
    named = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (*named, *added)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    write(folder, tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})


def reserved(folder: Path) -> None:
    """Llama 3 with its own media tokens."""
    llama_3(folder, added=tuple(f"<|reserved_special_token_{number}|>" for number in range(6)))


def bare(folder: Path) -> None:
    """The extra tokens are named beside `tokenizer.json` alone."""
    tokenizer = byte_level()
    base = tokenizer.get_vocab_size()
    listed = {
        str(base + place): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for place, token in enumerate(("<|im_start|>", "<|im_end|>"))
    }
    write(folder, tokenizer, {"added_tokens_decoder": listed, "eos_token": "<|endoftext|>"})


def llama_2(folder: Path) -> None:
    """A space in front of each part of a text, pieces of bytes, and ids 1 and 2 for a sequence's ends."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))  # noqa: S106 (a piece)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if not token["content"].startswith("<0x")]
    write(
        folder,
        Tokenizer.from_str(json.dumps(document)),
        {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "</s>", "unk_token": "<unk>"},
    )


def unigram(folder: Path) -> None:
    """Pieces with scores instead of merges."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",  # noqa: S106 (a piece)
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    write(folder, tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def write(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def files(folder: Path) -> TokenizerFiles:
    return TokenizerFiles("tokenizer", {path.name: path.read_bytes() for path in folder.iterdir()})


def usage(template: str, model_type: str) -> Usage:
    conversation, marks = CONVERSATIONS[template], media_marks(model_type)
    return Usage(
        template=prompt_template(conversation, Family.VITA, marks, start_end=False),
        marks=marks,
        positions=4096,
        replaced=SEQUENCE_MARKS if conversation.sequence_marks else {},
    )


def nemo_ids(tokenizer: Any, text: str, replaced: dict[int, int]) -> list[int]:
    """NeMo's `text_to_ids` of a Hugging Face tokenizer, and the replacements behind it."""
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    return [replaced.get(token, token) for token in ids]


def open_served(converted: ConvertedTokenizer, folder: Path) -> ServingTokenizer:
    folder.mkdir()
    for name, content in converted.files.items():
        (folder / name).write_bytes(content)
    return ServingTokenizer(folder / "tokenizer.json", add_bos=False)


CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str, str]] = {
    "llama 3": (llama_3, (), "llama_3", "vita"),
    "llama 3, reserved tokens": (reserved, (), "llama_3", "llama_3"),
    "llama 3, tokens added in training": (
        lambda folder: llama_3(folder, added=()),
        (*EXTRA, *TIMES),
        "llama_3",
        "vita",
    ),
    "yi, tokens named beside": (bare, EXTRA, "yi_34b", "nvgpt"),
    "llama 2": (llama_2, EXTRA, "v1", "v1"),
    "mistral": (llama_2, EXTRA, "mistral", "mistral"),
    "pieces with scores": (unigram, EXTRA, "nvgpt", "nvgpt"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_hugging_face_tokenizer_gives_the_ids_of_training(tmp_path: Path, case: str) -> None:
    make, added, template, model_type = CASES[case]
    folder = tmp_path / "original"
    folder.mkdir()
    make(folder)
    how = usage(template, model_type)
    converted = convert_tokenizer(files(folder), added, how)
    original = AutoTokenizer.from_pretrained(folder)
    original.add_special_tokens({"additional_special_tokens": list(added)})
    served = open_served(converted, tmp_path / "served")
    replaced = {original.convert_tokens_to_ids(piece): number for piece, number in how.replaced.items()}

    parts = render(how.template, TURNS)
    whole = "".join(part if isinstance(part, str) else how.marks.patch * part.rows for part in parts)
    wanted = nemo_ids(original, whole, replaced)
    prompt = served.encode(render(converted.template, TURNS))
    (span,) = prompt.media
    patch = original.convert_tokens_to_ids(how.marks.patch)
    assert wanted[span.start : span.start + span.length] == [patch] * 2
    found = [*prompt.ids[: span.start], patch, patch, *prompt.ids[span.start + span.length :]]
    assert found == wanted
    for text in SAMPLES:
        if how.replaced and "</s>" in text:
            assert not {1, 2} & set(served.encode([text]).ids)  # nobody can write a sequence's end
            continue
        ids = nemo_ids(original, text, replaced)
        assert list(served.encode([text]).ids) == ids
        assert served.decode(ids) == original.decode(ids, skip_special_tokens=True)
    assert converted.vocab_size == len(original)
    assert converted.media_patch == patch
    loaded = AutoTokenizer.from_pretrained(tmp_path / "served")
    assert nemo_ids(loaded, whole, {}) == wanted
    assert (loaded.eos_token_id, loaded.bos_token_id) == (converted.eos, converted.bos)
    assert converted.eos == original.eos_token_id


def test_times_stay_in_the_text_of_an_answer(tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    llama_3(folder)
    converted = convert_tokenizer(files(folder), (), usage("llama_3", "vita"))
    served = open_served(converted, tmp_path / "served")
    assert served.decode(served.encode(["at <t3><|eot_id|>"]).ids) == "at <t3>"
    assert converted.time_tokens == len(TIMES)


def test_a_genuine_id_0_beside_media_is_text(tmp_path: Path) -> None:
    """`!` is the first token of GPT-2's and of Llama 3's vocabulary."""
    folder = tmp_path / "original"
    folder.mkdir()
    llama_3(folder)
    served = open_served(convert_tokenizer(files(folder), (), usage("llama_3", "vita")), tmp_path / "served")
    prompt = served.encode(("!", MediaSlot(2), "!"))
    assert prompt.ids == (0, 0, 0, 0)
    assert [(span.start, span.length) for span in prompt.media] == [(1, 2)]
    assert served.decode([0]) == "!"


def test_gpt_2_s_vocabulary_and_merges_give_transformers_ids(tmp_path: Path) -> None:
    trained = byte_level()
    trained.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    document = json.loads(trained.to_str())
    vocab = {**document["model"]["vocab"], "<|endoftext|>": trained.token_to_id("<|endoftext|>")}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in document["model"]["merges"]), ""])
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(merges)
    content = {"vocab.json": json.dumps(vocab).encode(), "merges.txt": merges.encode()}
    converted = convert_tokenizer(TokenizerFiles("gpt2", content), EXTRA, usage("nvgpt", "nvgpt"))
    original = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    original.add_special_tokens({"additional_special_tokens": list(EXTRA)})
    served = open_served(converted, tmp_path / "served")
    for text in (*SAMPLES, "".join(part for part in render(converted.template, TURNS) if isinstance(part, str))):
        assert list(served.encode([text]).ids) == nemo_ids(original, text, {})
    assert converted.eos == converted.bos == original.eos_token_id
    assert converted.vocab_size == len(original)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.json": b"{"}, "no tokenizer"),
        ({"tokenizer_config.json": b"["}, "not JSON"),
        ({"tokenizer_config.json": b'{"added_tokens_decoder": {"x": 1}}'}, "added_tokens_decoder is damaged"),
        ({"tokenizer_config.json": b"{}"}, "no end-of-sequence token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, change: dict[str, bytes], says: str) -> None:
    llama_3(tmp_path)
    found = files(tmp_path)
    with pytest.raises(ProductError, match=says):
        convert_tokenizer(found._replace(content={**found.content, **change}), (), usage("llama_3", "vita"))


def test_pieces_with_scores_cannot_have_other_ids(tmp_path: Path) -> None:
    unigram(tmp_path)
    with pytest.raises(ProductError, match="a Unigram model, in which <extra_id_6> and <extra_id_7> cannot"):
        convert_tokenizer(files(tmp_path), EXTRA, usage("v1", "v1"))


def test_a_tokenizer_without_media_tokens_is_refused(tmp_path: Path) -> None:
    llama_3(tmp_path, added=())
    with pytest.raises(ProductError, match="lacks the piece <extra_id_4>"):
        convert_tokenizer(files(tmp_path), (), usage("llama_3", "vita"))
