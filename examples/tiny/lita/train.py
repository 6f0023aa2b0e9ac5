"""Trains the tiny LITA and writes it as a NeMo archive with distributed weights.

    python examples/tiny/lita/train.py --out OUT [--seed N] [--effort X]

OUT then holds `lita.nemo` and `heldout/` (videos, questions and answers never trained on). The tower is the tiny
NeVA's, frozen: `../neva/clip`, relative to the archive. Times in answers are time tokens, `<t0>` to `<t99>`.
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
from tiny.projectors import Projection, all_resolution, all_resolution_parts, make_projector
from tiny.prompts import Prompter

FRAMES: Final = 12
SAMPLE_FRAMES: Final = 2
SIZES: Final = Sizes(vocab=600, layers=3)

WORLD: Final = World(
    contents=lambda seed, held_out: videos.events(seed, held_out, FRAMES),
    questions=videos.ask_colour_event,
    render=videos.film,
    row_labels=lambda clip, _: labels.colours(labels.all_resolution_rows(clip, SIDE, SAMPLE_FRAMES, by_column=False)),
    deep_labels=lambda clip, rows: labels.event_deep(clip, rows, colours_alone=True),
)


def model_config() -> dict[str, Any]:
    """NeMo's lita_config, at the tiny sizes."""
    return configs.multimodal_config(
        SIZES,
        mm_cfg={
            "llm": {"from_pretrained": None, "freeze": False, "model_type": "v1"},
            "vision_encoder": configs.vision_encoder("../neva/clip", freeze=True),
            "pretrain_mm_mlp_adapter": None,
            "mm_mlp_adapter_type": "mlp2x_gelu",
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
            "conv_template": "v1",
            "image_token_len": PATCHES,
            "image_aspect_ratio": "pad",
        },
        distributed=True,
    )


def save(out: Path, llm: PreTrainedModel, projector: nn.Module, tokenizer: bytes) -> None:
    """Write the archive."""
    decoder = states.Decoder(languages.base_state(llm), SIZES.shape)
    state = decoder.stacked() | states.projector_state(languages.stored(projector.state_dict()))
    nemo_writer.write_archive(
        out / "lita.nemo", config=model_config(), tokenizer=tokenizer, state=state, distributed=True
    )


def make(seed: int, device: torch.device, _: Progress) -> trainer.Family:
    """The family, untrained."""
    tokenizer = prompts.train_sentencepiece(
        [*[prompts.CURIOUS, "USER: ", " ASSISTANT:"] * 20, *trainer.corpus(WORLD, seed)],
        SIZES.vocab,
        [*prompts.SPECIALS, *prompts.TIMES],
        prefix=True,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    eye = Eye.clip(pad=True)
    eye.tower.to(device)
    projector, llm = make_projector("mlp2x_gelu", WIDTH, SIZES.hidden), languages.make_llama(SIZES, pieces.eos_id())
    model = Answerer(Projection(projector, all_resolution(SAMPLE_FRAMES)), llm)

    def layout(seen: Tensor) -> prompts.Parts:
        return all_resolution_parts(SAMPLE_FRAMES, PATCHES, len(seen))

    subject = Subject(model, Prompter(pieces, prompts.V1, pieces.eos_id()), eye.see, layout)
    return trainer.Family(
        WORLD,
        subject,
        lambda out: save(out, llm, projector, tokenizer),
        amount=2500,
        batch=12,
        media_steps=500,
        steps=1500,
        rate=2e-3,
    )


if __name__ == "__main__":
    sys.exit(trainer.main(__doc__, make))
