"""The committed tiny models, built and asked by the product: questions about media that no training showed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import heldout
from tiny.judging import accepts
from tiny.pictures import Question

from multimodal_api.families import Family, LlmType
from multimodal_api.worker_protocol import Sampling
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_modeling.generate import generate
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes.audio import preprocess as hear
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out, lay_out_sound
from multimodal_recipes.prompt import Medium, Turn, render
from multimodal_recipes.tokenizer import Tokenizer
from support.conversion import write_model

pytestmark = pytest.mark.parity

TINY = Path(__file__).resolve().parents[2] / "examples/tiny"
LIMIT = 2 * 2**20  # bytes; what an archive beside its script may weigh
HELD_OUT_LIMIT = 2**20
LONGEST_ANSWER = 32


@dataclass(frozen=True)
class Tiny:
    """One family's model in the tree."""

    family: Family
    llm_type: LlmType
    folder: str

    @property
    def archive(self) -> Path:
        return TINY / self.folder / f"{self.folder}.nemo"


FAMILIES = (
    Tiny(Family.VIDEO_NEVA, LlmType.GPTNEXT, "video_neva"),
    Tiny(Family.LITA, LlmType.LLAMA, "lita"),
    Tiny(Family.VITA, LlmType.LLAMA, "vita"),
    Tiny(Family.VILA, LlmType.LLAMA, "vila"),
    Tiny(Family.SALM, LlmType.LLAMA, "salm"),
)


def convert(archive: Path, tiny: Tiny, out: Path) -> Path:
    write_model(out, CheckpointPaths(visual=archive), family=tiny.family, llm_type=tiny.llm_type)
    return out


@dataclass(frozen=True)
class Product:
    """A canonical model, asked as a server and its worker do together."""

    model: MultimodalModel
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> Product:
        model = MultimodalModel.load(folder, dtype=torch.float32, device=torch.device("cpu"))
        return cls(model, Tokenizer(folder / "llm" / "tokenizer.json", add_bos=model.recipe.add_bos))

    def see(self, medium: Any) -> tuple[torch.Tensor, Medium]:
        """Rows of a picture, a video or a sound, and how they stand in the prompt."""
        if isinstance(medium, np.ndarray):
            audio = self.model.recipe.hearing()
            mels = torch.from_numpy(hear(medium, audio.mel, at="sound"))
            return self.model.media.arrange(self.model.media.encode(mels[None])), lay_out_sound(audio, len(medium))
        vision = self.model.recipe.seeing()
        places = (0,) if vision.video is None else choose_frames(vision.video, len(medium))
        frames = [medium[place] for place in places]
        pixels = preprocess(np.stack([np.asarray(frame) for frame in frames]), vision.preprocessing, at="frames")
        features = self.model.media.encode(torch.from_numpy(pixels))
        return self.model.media.arrange(features), lay_out(vision, len(frames))

    def answer(self, medium: Any, question: str) -> str:
        recipe = self.model.recipe
        rows, laid_out = self.see(medium)
        prompt = self.tokenizer.encode(render(recipe.template, [Turn((laid_out, question))]))
        at = [place for span in prompt.media for place in range(span.start, span.start + span.length)]
        ids = generate(
            self.model.llm,
            self.model.prompt_embeddings(prompt.ids, at, rows),
            Sampling(),
            prompt_ids=prompt.ids,
            vocab_size=recipe.vocab_size,
            eos_token_ids=recipe.eos_token_ids,
            max_new_tokens=LONGEST_ANSWER,
        )
        text = self.tokenizer.decode(list(ids))
        for stop in recipe.stop_strings:
            text = text.partition(stop)[0]
        return text.strip()


def wrong(product: Product, folder: Path) -> list[tuple[Question, str]]:
    said = [(case.question, product.answer(case.medium, case.question.text)) for case in heldout.read(folder)]
    return [(question, answer) for question, answer in said if not accepts(question.answer, answer)]


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.family)
def test_the_product_answers_every_held_out_question(tiny: Tiny, tmp_path: Path) -> None:
    product = Product.load(convert(tiny.archive, tiny, tmp_path / "model"))
    assert wrong(product, tiny.archive.parent / "heldout") == []


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.family)
def test_the_files_are_small(tiny: Tiny) -> None:
    assert tiny.archive.stat().st_size <= LIMIT
    assert sum(file.stat().st_size for file in (tiny.archive.parent / "heldout").iterdir()) <= HELD_OUT_LIMIT


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.family)
def test_the_archive_has_the_settings_of_its_script(tiny: Tiny) -> None:
    with tarfile.open(tiny.archive, "r:") as archive:
        member = archive.extractfile("./model_config.yaml")
        assert member is not None
        found = yaml.safe_load(member)
    wanted = importlib.import_module(f"tiny.{tiny.folder}.train").model_config()
    wanted["tokenizer"] = {**wanted["tokenizer"], "model": found["tokenizer"]["model"]}
    assert found == wanted


@pytest.mark.train
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.family)
def test_the_script_still_makes_a_model_as_good(tiny: Tiny, tmp_path: Path) -> None:
    script = TINY / tiny.folder / "train.py"
    done = subprocess.run([sys.executable, os.fspath(script), "--out", os.fspath(tmp_path / "made")], check=False)
    assert done.returncode == 0
    # Towers lie beside the folders of the models.
    for tower in ("neva", "siglip"):
        (tmp_path / tower).symlink_to(TINY / tower)
    product = Product.load(convert(tmp_path / "made" / f"{tiny.folder}.nemo", tiny, tmp_path / "model"))
    assert wrong(product, tmp_path / "made" / "heldout") == []
