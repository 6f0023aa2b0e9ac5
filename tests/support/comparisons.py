"""Comparisons of what the product makes with what it did not write, as distances: for tests that break the product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Final

import numpy as np
import torch
from transformers import CLIPImageProcessorPil

from multimodal_api.engine import Dtype
from multimodal_api.families import Family
from multimodal_api.worker_protocol import Sampling
from multimodal_builder import speech
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.checkpoints.config import check_config
from multimodal_builder.checkpoints.speech_config import SpeechConfig
from multimodal_builder.inspection import inspect
from multimodal_modeling.generate import generate
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes import audio, waves
from multimodal_recipes.images import preprocess
from support import golden, language_cases, mel, upstream, vision_cases
from support.adapters import Lora
from support.archives import CLASSIC, Archive
from support.language_cases import CASES, TOLERANCE, VOCAB
from support.megatron_writer import write_state
from support.salm_writer import Perception, whole
from support.sounds import RATE, noise
from support.states import State
from support.towers import make_clip

Comparison = Callable[[Path], float]
"""From an empty folder to a distance, in tolerances: where all is right it is at most 1."""


def scores(name: str, form: str = "classic") -> Comparison:
    """Logits, near and far, of a model that is converted from one of NeMo's forms."""
    case = CASES[name]

    def compare(folder: Path) -> float:
        reference = language_cases.make_reference(case.config)
        state = write_state(reference, local=False, norms=case.norms) | language_cases.projector_state()
        archive = language_cases.archive_of(case)
        archive.write(folder)  # the tower beside it
        paths = upstream.FORMS[form].write(archive, state, folder)
        found = language_cases.load(language_cases.convert(paths.visual, case, folder / "out"))
        return language_cases.difference(found, language_cases.scores(reference)) / TOLERANCE

    return compare


def adapted(folder: Path) -> float:
    """Logits of a model with adapters on every layer."""
    case = replace(CASES["llama"], distributed=False)
    reference = language_cases.make_reference(case.config)
    adapters = Lora.random(reference, rank=3, alpha=12.0)
    case = replace(case, settings=case.settings | {"peft": adapters.config()})
    path = language_cases.write_checkpoint(folder, reference, case, lambda state: state.update(adapters.state()))
    adapters.attach(reference)
    found = language_cases.load(language_cases.convert(path, case, folder / "out"))
    return language_cases.difference(found, language_cases.scores(reference)) / TOLERANCE


def answered(name: str) -> Comparison:
    """A greedy answer of a model whose rows beyond the tokenizer would win every time."""
    case = CASES[name]
    head = "word_embeddings" if case.config.tie_word_embeddings else "output_layer"

    def tempt(state: State) -> None:
        rows = next(tensor for key, tensor in state.items() if head in key and tensor.shape[0] > VOCAB)
        rows[VOCAB:] = rows[:1] * 1000 * torch.tensor([1.0, -1.0] * 6)[:, None]

    def compare(folder: Path) -> float:
        reference = language_cases.make_reference(case.config)
        path = language_cases.write_checkpoint(folder, reference, case, tempt)
        model = load(language_cases.convert(path, case, folder / "out"))
        ids = [7, 0, 9]
        said = generate(
            model.llm,
            model.prompt_embeddings(ids, (), torch.empty(0, language_cases.HIDDEN)),
            Sampling(),
            prompt_ids=(),
            vocab_size=model.recipe.vocab_size,
            eos_token_ids=(),
            max_new_tokens=8,
        )
        wanted = list(ids)
        with torch.inference_mode():
            for _ in range(8):
                wanted.append(int(reference(input_ids=torch.tensor([wanted])).logits[0, -1].argmax()))
        return equal(list(said), wanted[3:])

    return compare


def spliced(folder: Path) -> float:
    """Logits of a prompt with media, and with the token whose id stands in the place of media."""
    case = CASES["llama"]
    reference = language_cases.make_reference(case.config)
    path = language_cases.write_checkpoint(folder, reference, case)
    model = load(language_cases.convert(path, case, folder / "out"))
    ids = torch.tensor([0, 7, 0, 0, 0, 9, 0, 11])
    media = torch.randn(3, language_cases.HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embedded = reference.get_input_embeddings()(ids)
        embedded[2:5] = media
        wanted = reference(inputs_embeds=embedded[None]).logits[0]
        found = model.llm.logits(model.prompt_embeddings(ids.tolist(), range(2, 5), media)[None], model.llm.new_cache())
    return distance(found[0, :, :VOCAB], wanted)


def accounted(change: Callable[[State], object]) -> Comparison:
    """Whether a checkpoint with a tensor too few or too many is refused."""

    def compare(folder: Path) -> float:
        case = CASES["llama"]
        reference = language_cases.make_reference(case.config)
        path = language_cases.write_checkpoint(folder, reference, case, change)
        inspection, _, opened = inspect(
            CheckpointPaths(visual=path), family=Family.NEVA, llm_type=case.llm_type, dtype=Dtype.FLOAT32, limits=None
        )
        opened.close()
        return 0 if inspection.problems else inf

    return compare


def load(out: Path) -> MultimodalModel:
    return MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max()) / TOLERANCE


def equal(found: object, wanted: object) -> float:
    return 0 if found == wanted else inf


def rows(case: vision_cases.Case) -> Comparison:
    """What pictures become."""

    def compare(folder: Path) -> float:
        tower, state = case.make(case.image_size), vision_cases.projector_state(case.projector)
        recipe = vision_cases.convert(vision_cases.write(folder, case, tower, state), folder / "out")
        pixels = vision_cases.pixels_for(case)
        wanted = vision_cases.reference(case, tower, state, pixels)
        found = vision_cases.encode(folder / "out", recipe, pixels)[:, : wanted.shape[1]]
        return vision_cases.difference(found, wanted) / vision_cases.TOLERANCE

    return compare


def seen(folder: Path) -> float:
    """Pixels of a coloured picture that is no square, by the processor that lies beside the tower."""
    case = vision_cases.Case(make_clip)
    path = vision_cases.write(folder, case, case.make(case.image_size), vision_cases.projector_state(case.projector))
    recipe = vision_cases.convert(path, folder / "out")
    picture = np.random.default_rng(4).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    theirs = CLIPImageProcessorPil.from_pretrained(folder / "tower")(images=picture, return_tensors="np")
    found = preprocess(picture[None], recipe.seeing().preprocessing, at="picture")
    return float(np.abs(found - np.asarray(theirs["pixel_values"])).max()) / TOLERANCE


TONE: Final = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)


def heard(_folder: Path) -> float:
    """Frames of a sound, by the front end that the tiny SALM's configuration describes."""
    config = check_config(whole(Perception.random()).config(), SpeechConfig, "salm.nemo")
    samples = noise(700)
    found = audio.preprocess(samples, speech.audio_recipe(config).mel, at="sound")
    return float(np.abs(found - mel.training_frames(samples)).max()) / mel.TOLERANCE


def recorded(_folder: Path) -> float:
    """A tone of a kilohertz, recorded at another rate, on the left of two channels louder than on the right."""
    times = np.arange(2 * RATE) / (2 * RATE)
    tone = np.sin(2 * np.pi * 1000 * times).astype(np.float32)
    found = waves.to_mono(waves.Wave(np.stack([tone * 1.5, tone * 0.5], axis=1), 2 * RATE), RATE)
    if len(found) != len(TONE):
        return inf
    return float(np.abs(found - TONE)[200:-200].max()) / 1e-2


def asked(name: str) -> Comparison:
    """Ids of a prompt of two turns, against NeMo's text and SentencePiece's ids."""

    def compare(folder: Path) -> float:
        archive = Archive.read(CLASSIC)
        pieces = archive.members[archive.config()["tokenizer"]["model"].removeprefix("nemo:")]
        prompt = golden.served(golden.convert(pieces, name), folder, "two")
        return equal(list(prompt.ids), golden.training_ids(name, "two", prompt))

    return compare
