"""The tiny NeVA: its sizes, its tokenizer, its prompt, and its form as a Hugging Face LLaVA."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sentencepiece
import torch
from safetensors.torch import save_file
from tiny.prompts import PATCH_PIECE, SPECIALS, train_sentencepiece
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

CROP: Final = 48
PATCH: Final = 8
PATCHES: Final = (CROP // PATCH) ** 2
TOWER_WIDTH: Final = 64
HIDDEN: Final = 96
FFN: Final = 256
LAYERS: Final = 2
HEADS: Final = 4
GROUPS: Final = 2
VOCAB: Final = 500  # what SentencePiece is asked for
PADDED_VOCAB: Final = 512  # the next multiple of make_vocab_size_divisible_by: 128
INIT: Final = 0.05  # spread of fresh weights; at this width the usual 0.02 learns much slower
CONTEXT: Final = 4096  # llava_config's encoder_seq_length; rope needs no weights for it

# NeMo's template nv_dpo, with its empty system turn. NeMo turns `<image>` in the user's text into the media span and a
# newline; so a picture followed by a question gives the same ids as the removed TensorRT runner's fixed neva prompt.
BEFORE_MEDIA: Final = "<extra_id_0>System\n\n<extra_id_1>User\n"
AFTER_MEDIA: Final = "\n{question}\n<extra_id_1>Assistant\n"
AFTER_ANSWER: Final = "\n<extra_id_1>"
STOP_PIECES: Final = (SPECIALS[1], SPECIALS[7])  # NeMo's end_strings

# The statistics of every CLIP tower by OpenAI.
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)


def train_tokenizer(sentences: Iterable[str]) -> bytes:
    """Train a SentencePiece model that adds no space, so that text before and after a picture can be encoded apart."""
    return train_sentencepiece(sentences, VOCAB, SPECIALS, prefix=False)


@dataclass(frozen=True, slots=True)
class Prompter:
    """Turns questions into token ids and generated ids into answers."""

    tokenizer: sentencepiece.SentencePieceProcessor

    @classmethod
    def from_bytes(cls, model: bytes) -> "Prompter":
        """Read a SentencePiece model file."""
        return cls(sentencepiece.SentencePieceProcessor(model_proto=model))

    @property
    def image_id(self) -> int:
        """The id that stands at each of the PATCHES positions of a picture."""
        return int(self.tokenizer.piece_to_id(PATCH_PIECE))

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer."""
        return [*(self.tokenizer.piece_to_id(piece) for piece in STOP_PIECES), self.tokenizer.eos_id()]

    @property
    def media_start(self) -> int:
        """The position of the first picture token in every prompt."""
        return len(self.tokenizer.encode(BEFORE_MEDIA))

    def prompt(self, question: str) -> list[int]:
        """The ids of a whole prompt, the picture's positions included."""
        after = self.tokenizer.encode(AFTER_MEDIA.format(question=question))
        return [*self.tokenizer.encode(BEFORE_MEDIA), *[self.image_id] * PATCHES, *after]

    def answer_ids(self, answer: str) -> list[int]:
        """The ids the model must write for an answer, its end included."""
        return list(self.tokenizer.encode(answer + AFTER_ANSWER))

    def read(self, ids: Sequence[int]) -> str:
        """The answer in generated ids: up to the first stop piece, without the newline before it."""
        stop = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:stop]))).strip()


def make_processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing at the tiny size: shortest edge to CROP, bicubic, centre crop, mean and deviation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": CROP},
        crop_size={"height": CROP, "width": CROP},
        resample=3,
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
        do_convert_rgb=True,
    )


def make_model(prompter: Prompter) -> LlavaForConditionalGeneration:
    """A LLaVA of the tiny sizes with fresh weights, in float32.

    NeVA's settings: hidden state -2 of the tower, without the class token; two projector layers with GELU between; a
    Llama with grouped-query attention and an untied head.
    """
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=3 * TOWER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CROP,
        patch_size=PATCH,
        projection_dim=TOWER_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        initializer_range=INIT,
        tie_word_embeddings=False,
        bos_token_id=prompter.tokenizer.bos_id(),
        eos_token_id=prompter.tokenizer.eos_id(),
        pad_token_id=prompter.tokenizer.eos_id(),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=prompter.image_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def part(model: LlavaForConditionalGeneration, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, which is cut off."""
    return {name.removeprefix(prefix): value for name, value in model.state_dict().items() if name.startswith(prefix)}


def tower_state(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """The tower's tensors under the names that OpenAI's repositories and NeMo use: all start with `vision_model.`."""
    return {f"vision_model.{name}": tensor for name, tensor in part(model, "model.vision_tower.").items()}


def llama_state(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """The language model's tensors under the names of a `LlamaForCausalLM`."""
    inner = {f"model.{name}": tensor for name, tensor in part(model, "model.language_model.").items()}
    return inner | {"lm_head.weight": model.lm_head.weight.detach()}


def save_clip(folder: Path, model: LlavaForConditionalGeneration) -> None:
    """Write the tower, in bfloat16, as a repository of a `CLIPVisionModel` holds it.

    The configuration is the tower's alone, as in the `vision_tower` folders that the LLaVA converters leave; OpenAI's
    own repositories nest it in the configuration of a whole CLIP.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_processor().save_pretrained(folder)
    model.model.vision_tower.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["CLIPVisionModel"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    weights = folder / "model.safetensors"
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tower_state(model).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors lets only the owner read; a server runs as another user


def save_hf(folder: Path, model: LlavaForConditionalGeneration, tokenizer: bytes) -> None:
    """Write the whole model as transformers keeps it, with preprocessing and SentencePiece file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer)
