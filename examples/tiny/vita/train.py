"""Trains the tiny VITA and writes it as a NeMo archive with distributed weights, its trained tower inside.

    python examples/tiny/vita/train.py --out OUT [--seed N] [--effort X]

OUT then holds `vita.nemo`, `tokenizer/` and `heldout/` (videos, questions and answers never trained on). The tower is
the tiny SigLIP; its configuration is in `../siglip`, relative to the archive. The tokenizer is one of Hugging Face, of
Llama 3's kind, which NeMo's archives name and do not hold. Times in answers are time tokens, `<t0>` to `<t99>`.
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

# Read when torch is loaded: threads that wait for one another sleep. Spinning is slow on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import json

from tiny import configs, eyes, labels, languages, nemo_writer, prompts, states, trainer, videos
from tiny.answering import Answerer, Subject, World
from tiny.eyes import WIDTH, Eye
from tiny.languages import Sizes
from tiny.learning import CELLS, Progress
from tiny.pictures import GRID
from tiny.projectors import Projection, all_resolution, all_resolution_parts, make_projector
from tiny.prompts import SPECIALS, TIMES, FastTokenizer, Prompter
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

FRAMES: Final = 12
SAMPLE_FRAMES: Final = 4
PIECES: Final = 420
BEGIN, END, TURN_END = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
HEADERS: Final = ("<|start_header_id|>", "<|end_header_id|>")
# As VITA's tokenizer is prepared: the media tokens that LITA adds, the time tokens, then the other extra ids.
MEDIA_FIRST: Final = [SPECIALS[number] for number in (4, 5, 8, 9)]
ADDED: Final = [*MEDIA_FIRST, *TIMES, *(piece for piece in SPECIALS if piece not in MEDIA_FIRST)]
SIZES: Final = Sizes(vocab=PIECES + 5 + len(ADDED), layers=3, ffn=224, groups=2, rotary_base=500_000.0)

WORLD: Final = World(
    contents=lambda seed, held_out: videos.events(seed, held_out, FRAMES),
    questions=videos.ask_event,
    render=videos.film,
    row_labels=lambda clip, _: labels.all_resolution_rows(clip, GRID, SAMPLE_FRAMES, by_column=True),
    deep_labels=labels.event_deep,
)


def model_config() -> dict[str, Any]:
    """NeMo's vita_config, at the tiny sizes."""
    return configs.multimodal_config(
        SIZES,
        mm_cfg={
            "llm": {"from_pretrained": None, "freeze": False, "model_type": "vita"},
            "vision_encoder": configs.vision_encoder(
                "../siglip", freeze=False, vision_select_feature="cls_patch", class_token_length=0
            ),
            "pretrain_mm_mlp_adapter": None,
            "mm_mlp_adapter_type": "mlp_downsample",
            "use_im_start_end": False,
            "use_lita": True,
            "lita": {
                "lita_video_arch": "temporal_all_resolution",
                "visual_token_format": "im_vid_start_end",
                "sample_frames": SAMPLE_FRAMES,
            },
        },
        data={
            "media_type": "video",
            "num_frames": FRAMES,
            "splice_single_frame": None,
            "conv_template": "llama_3",
            "image_token_len": CELLS,
            "image_aspect_ratio": "pad",
        },
        distributed=True,
        tokenizer={**configs.SENTENCEPIECE, "library": "huggingface", "type": "tokenizer"},
    )


def train_tokenizer(sentences: list[str]) -> Tokenizer:
    """Train a tokenizer of Llama 3's kind: byte pairs of bytes, and a post-processor that adds the first token."""
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        sentences, trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False)
    )
    for piece in (BEGIN, END, *HEADERS, TURN_END, *ADDED):
        tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's folder as a repository of a Llama 3 holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": TURN_END,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": SIZES.positions,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def save(out: Path, llm: PreTrainedModel, projector: nn.Module, tokenizer: Tokenizer, eye: Eye) -> None:
    """Write archive and tokenizer."""
    save_tokenizer(out / "tokenizer", tokenizer)
    decoder = states.Decoder(languages.base_state(llm), SIZES.shape)
    state = (
        decoder.stacked()
        | states.projector_state(languages.stored(projector.state_dict()))
        | states.tower_state(eyes.state(eye.tower))
    )
    nemo_writer.write_archive(out / "vita.nemo", config=model_config(), tokenizer=None, state=state, distributed=True)


def make(seed: int, device: torch.device, _: Progress) -> trainer.Family:
    """The family, untrained."""
    tokenizer = train_tokenizer([*[prompts.HELPFUL, "system", "user", "assistant"] * 20, *trainer.corpus(WORLD, seed)])
    pieces = FastTokenizer(tokenizer)
    eos = pieces.piece_to_id(TURN_END)
    eye = Eye.siglip(pad=True)
    eye.tower.to(device)
    projector, llm = make_projector("mlp_downsample", WIDTH, SIZES.hidden), languages.make_llama(SIZES, eos)
    model = Answerer(Projection(projector, all_resolution(SAMPLE_FRAMES)), llm)

    def layout(seen: Tensor) -> prompts.Parts:
        return all_resolution_parts(SAMPLE_FRAMES, CELLS, len(seen))

    subject = Subject(model, Prompter(pieces, prompts.LLAMA_3, eos), eye.see, layout)
    return trainer.Family(
        WORLD,
        subject,
        lambda out: save(out, llm, projector, tokenizer, eye),
        amount=6000,
        media_steps=2000,
        steps=2500,
        rate=2e-3,
    )


if __name__ == "__main__":
    sys.exit(trainer.main(__doc__, make))
