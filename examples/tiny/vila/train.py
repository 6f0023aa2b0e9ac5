"""Trains the tiny VILA and writes it as NeMo 1.23 wrote a model trained on two tensor-parallel ranks.

    python examples/tiny/vila/train.py --out OUT [--seed N] [--effort X]

OUT then holds `vila.nemo` (`mp_rank_00/` and `mp_rank_01/`) and `heldout/` (pictures, questions and answers never
trained on). The tower is the tiny SigLIP, frozen: `../siglip`, relative to the archive.
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

import random
from collections.abc import Iterator

import sentencepiece
from PIL import Image
from tiny import configs, labels, languages, nemo_writer, pictures, prompts, states, trainer
from tiny.answering import Answerer, Subject, World
from tiny.eyes import WIDTH, Eye
from tiny.languages import Sizes
from tiny.learning import CELLS, Progress
from tiny.projectors import Projection, all_frames, make_projector
from tiny.prompts import Prompter

RANKS: Final = 2
WIDEST: Final = 120  # pixels; the tower squashes pictures, and shapes must stay recognisable
SIZES: Final = Sizes(vocab=500, ranks=RANKS)


def contents(seed: int, held_out: bool) -> Iterator[pictures.Scene]:  # noqa: FBT001 - a World's signature
    """Pictures' contents."""
    return pictures.scenes(seed, held_out=held_out)


def render(scene: pictures.Scene, rng: random.Random) -> list[Image.Image]:
    """A picture, as a video of one frame."""
    return [pictures.paint(scene, rng, WIDEST)]


WORLD: Final = World(contents, pictures.questions, render, row_labels=lambda scene, _: labels.picture_rows(scene))


def model_config() -> dict[str, Any]:
    """What convert_llava_to_neva writes for a VILA, at the tiny sizes."""
    return configs.multimodal_config(
        SIZES,
        mm_cfg={
            "llm": {"from_pretrained": None, "freeze": False, "model_type": "v1"},
            "vision_encoder": configs.vision_encoder(
                "../siglip", freeze=True, vision_select_feature="cls_patch", class_token_length=0
            ),
            "pretrain_mm_mlp_adapter": None,
            "mm_mlp_adapter_type": "mlp_downsample",
            "use_im_start_end": False,
        },
        data={"conv_template": "v1", "image_token_len": CELLS, "image_aspect_ratio": "resize"},
        distributed=False,
    )


def save(out: Path, llm: PreTrainedModel, projector: nn.Module, tokenizer: bytes) -> None:
    """Write the archive."""
    decoder = states.Decoder(languages.base_state(llm), SIZES.shape)
    state = decoder.classic() | states.projector_state(languages.stored(projector.state_dict()))
    nemo_writer.write_members(
        out / "vila.nemo",
        config=model_config(),
        tokenizer=tokenizer,
        weights=lambda root: nemo_writer.write_ranks(root, [states.rank_state(state, n, RANKS) for n in range(RANKS)]),
    )


def make(seed: int, device: torch.device, _: Progress) -> trainer.Family:
    """The family, untrained."""
    tokenizer = prompts.train_sentencepiece(
        [*[prompts.CURIOUS, "USER: ", " ASSISTANT:"] * 20, *trainer.corpus(WORLD, seed)],
        SIZES.vocab,
        prompts.SPECIALS,
        prefix=True,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    eye = Eye.siglip(pad=False)
    eye.tower.to(device)
    projector, llm = make_projector("mlp_downsample", WIDTH, SIZES.hidden), languages.make_llama(SIZES, pieces.eos_id())
    model = Answerer(Projection(projector, all_frames), llm)

    def layout(_: Tensor) -> prompts.Parts:
        return (CELLS,)

    subject = Subject(model, Prompter(pieces, prompts.V1, pieces.eos_id()), eye.see, layout)
    return trainer.Family(WORLD, subject, lambda out: save(out, llm, projector, tokenizer), amount=12_000, listed=6)


if __name__ == "__main__":
    sys.exit(trainer.main(__doc__, make))
