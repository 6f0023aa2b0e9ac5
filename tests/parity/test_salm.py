"""SALM from NeMo's archives to logits, against a plain account of the speech encoder and transformers' Llama.

Reader and writer share no code, and the speech encoder is computed a second time by `support.naive_conformer`, which
works on NeMo's own names.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sentencepiece
import torch
from tiny.neva import model as tiny
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

from multimodal_api.build import ExitCode, Outcome
from multimodal_api.engine import MODEL_DIR
from multimodal_api.families import Family
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.main import main
from multimodal_builder.progress import Tracker
from multimodal_builder.stages import run_build
from multimodal_builder.store import Store
from multimodal_modeling.audio import AudioEncoder
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes.audio import preprocess
from multimodal_recipes.layout import lay_out_sound
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.tokenizer import Tokenizer
from support import upstream
from support.adapters import Lora
from support.archives import CKPT, CLASSIC, Archive
from support.builds import request_for
from support.conversion import write_model
from support.megatron_writer import write_state
from support.naive_conformer import hear
from support.salm_writer import Perception, split, whole
from support.sounds import FRONT_END, SALM, chirp, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
"""Of rows and of logits in float32, relative to the largest."""
WRONG = 100
"""A mistake moves them by more than so many tolerances."""

QUESTION = "what's the transcription of the audio?"
SOUNDS = {"long": chirp(4.0), "short": noise(700), "middle": noise(16_000), "one row": noise(63 * 160)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny NeVA, converted: its language model stands behind the speech encoder."""
    out = tmp_path_factory.mktemp("base") / "out"
    assert main(["convert", str(CLASSIC), str(out)]) == ExitCode.OK
    return out


def llama(base: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(base / "llm", dtype=torch.float32).eval()


def convert(paths: CheckpointPaths, out: Path) -> Path:
    write_model(out, paths, family=Family.SALM)
    return out


def convert_archive(archive: Archive, folder: Path) -> Path:
    path = folder / "salm.nemo"
    path.write_bytes(archive.to_bytes())
    return convert(CheckpointPaths(visual=path), folder / "out")


def load(out: Path) -> MultimodalModel:
    return MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))


def frames(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(preprocess(samples, FRONT_END, at="sound"))


def encoder(out: Path) -> AudioEncoder:
    return AudioEncoder.load(out, device=torch.device("cpu"))


def difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": False}, {"scale_input": False}, {"conv_kernel_size": 5}],
    ids=["as trained", "no biases", "no scaling", "narrow kernel"],
)
def test_sounds_of_unequal_lengths_give_the_rows_that_each_gives_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    perception = Perception.random(**changes)
    out = convert_archive(whole(perception), tmp_path)
    found = encoder(out).encode_together([frames(samples) for samples in SOUNDS.values()])
    state, xscaling = perception.state(), changes.get("scale_input", True)
    for rows, samples in zip(found, SOUNDS.values(), strict=True):
        wanted = hear(state, frames(samples), xscaling=xscaling)
        assert len(wanted) == SALM.rows(len(samples))
        assert difference(rows, wanted) <= TOLERANCE


def test_a_sound_alone_is_encoded_as_together_with_others(tmp_path: Path) -> None:
    model = load(convert_archive(whole(Perception.random()), tmp_path))
    alone = model.media.encode(frames(SOUNDS["middle"])[None])[0]
    together = encoder(tmp_path / "out").encode_together([frames(SOUNDS["long"]), frames(SOUNDS["middle"])])[1]
    assert difference(together, alone) <= TOLERANCE


def swap(state: dict[str, Tensor], one: str, other: str) -> dict[str, Tensor]:
    """Exchange two words in all names."""
    return {name.replace(one, "\0").replace(other, one).replace("\0", other): tensor for name, tensor in state.items()}


def edit(state: dict[str, Tensor], part: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(tensor) if part in name else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "mistake",
    [
        lambda s: swap(s, "pos_bias_u", "pos_bias_v"),
        lambda s: swap(s, "linear_q", "linear_k"),
        lambda s: swap(s, "feed_forward1", "feed_forward2"),
        lambda s: swap(s, "conv.2.", "conv.5."),
        lambda s: edit(s, "running_mean", torch.zeros_like),
        lambda s: edit(s, "running_var", torch.ones_like),
        lambda s: edit(s, "pos_bias", torch.zeros_like),
    ],
    ids=["biases", "queries", "halves", "subsampling", "means", "variances", "no bias"],
)
def test_a_mistake_in_the_speech_encoder_is_seen_in_the_rows(
    tmp_path: Path, mistake: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    perception = Perception.random()
    found = encoder(convert_archive(whole(perception), tmp_path)).encode(frames(SOUNDS["middle"])[None])[0]
    assert difference(found, hear(mistake(perception.state()), frames(SOUNDS["middle"]))) > WRONG * TOLERANCE


def test_padding_that_is_not_silent_is_seen_in_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = encoder(convert_archive(whole(Perception.random()), tmp_path))
    both = [frames(SOUNDS["long"]), frames(SOUNDS["middle"])]
    wanted = loaded.encode_together(both)[1]
    forward = type(loaded._encoder).forward

    def unmasked(self: Any, input_features: Tensor, attention_mask: Tensor) -> Any:
        output = forward(self, input_features=input_features)
        output.attention_mask = self._get_output_attention_mask(attention_mask, output.last_hidden_state.shape[1])
        return output

    monkeypatch.setattr(type(loaded._encoder), "forward", unmasked)
    assert difference(loaded.encode_together(both)[1], wanted) > WRONG * TOLERANCE


def asked(
    out: Path, model: MultimodalModel, samples: np.ndarray, question: str = QUESTION
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Run the worker's path; give prompt embeddings, logits and ids."""
    recipe = model.recipe
    audio = recipe.hearing()
    tokenizer = Tokenizer(out / "llm" / "tokenizer.json", add_bos=recipe.add_bos)
    prompt = tokenizer.encode(render(recipe.template, (Turn((lay_out_sound(audio, len(samples)), question)),)))
    at = [place for span in prompt.media for place in range(span.start, span.start + span.length)]
    rows = model.media.encode(torch.from_numpy(preprocess(samples, audio.mel, at="sound"))[None])[0]
    embeddings = model.prompt_embeddings(prompt.ids, at, rows)
    with torch.inference_mode():
        return embeddings, model.llm.logits(embeddings[None], model.llm.new_cache())[0], prompt.ids


def reference(
    language: Any, perception: Perception, samples: np.ndarray, question: str = QUESTION
) -> tuple[Tensor, list[int]]:
    """Compose training's own way: the sound's rows, then the text's; give logits and the text's ids."""
    archive = Archive.read(CLASSIC)
    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=archive.members[archive.config()["tokenizer"]["model"].removeprefix("nemo:")]
    )
    ids = pieces.encode(f"Q: {question}\nA:")
    with torch.inference_mode():
        rows = hear(perception.state(), frames(samples))
        embeddings = torch.cat([rows, language.get_input_embeddings()(torch.tensor(ids))])
        return language(inputs_embeds=embeddings[None]).logits[0], ids


@pytest.mark.parametrize("form", ["whole", "split"])
def test_logits_of_the_whole_model_are_those_of_its_parts(tmp_path: Path, base: Path, form: str) -> None:
    """Rows before text, adapters merged with alpha over rank, from one archive or from the pieces of NeMo's script."""
    perception, language = Perception.random(), llama(base)
    lora = Lora.random(language, rank=3, alpha=12.0)
    archive = whole(perception, lora.state(), lora.config())
    if form == "whole":
        out = convert_archive(archive, tmp_path)
    else:
        speech, llm, adapters = split(archive, tmp_path)
        out = convert(CheckpointPaths(visual=speech, llm=llm, lora=adapters), tmp_path / "out")
    lora.attach(language)
    samples = SOUNDS["long"]
    wanted, text = reference(language, perception, samples)
    _, found, ids = asked(out, load(out), samples)
    assert list(ids[SALM.rows(len(samples)) :]) == text
    assert difference(found, wanted) <= TOLERANCE


LONG = QUESTION * 12


@cache
def everywhere() -> tuple[Perception, LlamaForCausalLM, Tensor]:
    """A speech encoder, a Llama that can be shared out among four ranks, and how they score a long prompt."""
    perception = Perception.random()
    config = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=tiny.HIDDEN,
        intermediate_size=tiny.FFN,
        num_hidden_layers=tiny.LAYERS,
        num_attention_heads=tiny.HEADS,
        num_key_value_heads=tiny.HEADS,
        max_position_embeddings=tiny.CONTEXT,
        rms_norm_eps=1e-5,
    )
    language = LlamaForCausalLM(config).float().eval()
    for parameter in language.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return perception, language, reference(language, perception, SOUNDS["long"], LONG)[0]


@pytest.mark.parametrize("form", upstream.forms_of("salm"))
def test_every_form_gives_the_logits_of_its_parts(tmp_path: Path, form: str) -> None:
    perception, language, wanted = everywhere()
    archive = whole(perception, language=write_state(language, local=False))
    archive.set_config("num_query_groups", None).write(tmp_path, "salm.nemo")
    written = upstream.FORMS[form].write(*upstream.read_classic(tmp_path / "salm.nemo"), tmp_path)
    out = convert(CheckpointPaths(visual=written.visual, llm=written.llm), tmp_path / "out")
    _, found, _ = asked(out, load(out), SOUNDS["long"], LONG)
    assert len(found) > 300
    assert difference(found[:, : tiny.VOCAB], wanted) <= TOLERANCE


def test_forgotten_adapters_are_seen_in_the_logits(tmp_path: Path, base: Path) -> None:
    """What the removed runner did: it never read the adapters of a SALM model."""
    perception, language = Perception.random(), llama(base)
    lora = Lora.random(language, rank=3, alpha=12.0)
    out = convert_archive(whole(perception, lora.state(), lora.config()), tmp_path)
    _, found, _ = asked(out, load(out), SOUNDS["long"])
    wanted, _ = reference(language, perception, SOUNDS["long"])
    assert difference(found, wanted) > WRONG * TOLERANCE


def test_the_folders_are_transformers_own(tmp_path: Path) -> None:
    out = convert_archive(whole(Perception.random()), tmp_path)
    for folder in ("audio", "adapter"):
        _, info = ParakeetEncoder.from_pretrained(out / folder, output_loading_info=True)
        assert {name.rpartition(".")[2] for name in info["missing_keys"]} == {"num_batches_tracked"}
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]


def test_the_recipe_says_what_training_did(tmp_path: Path) -> None:
    recipe = load(convert_archive(whole(Perception.random()), tmp_path)).recipe
    assert recipe.audio == SALM
    assert (recipe.stop_strings, recipe.add_bos, recipe.template.lead) == (("[EOG]",), False, " ")
    archive = Archive.read(tmp_path / "salm.nemo")
    state = torch.load(io.BytesIO(archive.members[CKPT]), weights_only=False)
    assert any(value is None for value in state.values())


def test_a_real_build_verifies_and_publishes(tmp_path: Path) -> None:
    path = tmp_path / "salm.nemo"
    path.write_bytes(whole(Perception.random()).to_bytes())
    request = request_for(path, family=Family.SALM)
    report = run_build(request, Store(tmp_path), Tracker())
    assert report.outcome is Outcome.PUBLISHED
    assert load(tmp_path / request.key / MODEL_DIR).recipe.family is Family.SALM
