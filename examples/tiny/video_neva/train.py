"""Trains the tiny Video-NeVA and writes it as a NeMo archive with distributed weights.

    python examples/tiny/video_neva/train.py --out OUT [--seed N] [--effort X]

OUT then holds `video_neva.nemo` and `heldout/` (videos, questions and answers never trained on). The tower is the tiny
NeVA's, frozen: `../neva/clip`, relative to the archive. The language model is Nemotron's kind (llmType gptnext).
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

import sentencepiece
from tiny import configs, labels, languages, nemo_writer, prompts, states, trainer, videos
from tiny.answering import Answerer, Subject, World
from tiny.eyes import PATCHES, SIDE, WIDTH, Eye
from tiny.languages import Sizes
from tiny.learning import Progress
from tiny.projectors import Projection, all_frames, make_projector
from tiny.prompts import Prompter

FRAMES: Final = 8
SIZES: Final = Sizes(vocab=500, layers=3, ffn=320, groups=2)

WORLD: Final = World(
    contents=lambda seed, held_out: videos.movements(seed, held_out, FRAMES),
    questions=videos.ask_movement,
    render=videos.film,
    row_labels=lambda clip, _: labels.all_frames_rows(clip, SIDE),
    deep_labels=lambda clip, _: labels.movement_deep(clip, SIDE),
)


def model_config() -> dict[str, Any]:
    """NeMo's video_neva_config, at the tiny sizes."""
    return configs.multimodal_config(
        SIZES,
        mm_cfg={
            "llm": {"from_pretrained": None, "freeze": False, "model_type": "nvgpt"},
            "vision_encoder": configs.vision_encoder("../neva/clip", freeze=True),
            "pretrain_mm_mlp_adapter": None,
            "mm_mlp_adapter_type": "linear",
            "use_im_start_end": False,
        },
        data={
            "media_type": "video",
            "num_frames": FRAMES,
            "splice_single_frame": None,
            "conv_template": "nvgpt",
            "image_token_len": PATCHES,
        },
        distributed=True,
        normalization="layernorm1p",
        activation="squared-relu",
        rotary_percentage=0.5,
    )


def save(out: Path, llm: PreTrainedModel, projector: nn.Module, tokenizer: bytes) -> None:
    """Write the archive."""
    decoder = states.Decoder(languages.base_state(llm), SIZES.shape)
    state = decoder.stacked() | states.projector_state(languages.stored(projector.state_dict()))
    nemo_writer.write_archive(
        out / "video_neva.nemo", config=model_config(), tokenizer=tokenizer, state=state, distributed=True
    )


def make(seed: int, device: torch.device, _: Progress) -> trainer.Family:
    """The family, untrained."""
    system = [prompts.CURIOUS, prompts.LABELS, "System", "User", "Assistant"] * 20
    tokenizer = prompts.train_sentencepiece(
        [*system, *trainer.corpus(WORLD, seed)], SIZES.vocab, prompts.SPECIALS, prefix=False
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    eye = Eye.clip(pad=False)
    eye.tower.to(device)
    projector, llm = make_projector("linear", WIDTH, SIZES.hidden), languages.make_nemotron(SIZES, pieces.eos_id())
    model = Answerer(Projection(projector, all_frames), llm)

    def layout(seen: Tensor) -> prompts.Parts:
        return (seen.shape[0] * seen.shape[1],)

    subject = Subject(model, Prompter(pieces, prompts.NVGPT, pieces.eos_id()), eye.see, layout)
    return trainer.Family(
        WORLD,
        subject,
        lambda out: save(out, llm, projector, tokenizer),
        amount=4000,
        batch=16,
        media_steps=2000,
        steps=2500,
        rate=2e-3,
    )


if __name__ == "__main__":
    sys.exit(trainer.main(__doc__, make))
