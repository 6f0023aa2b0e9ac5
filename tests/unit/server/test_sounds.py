"""Requests of audio models: what is taken, what is refused, and what the worker is given."""

from __future__ import annotations

import base64
import io
import wave as wave_files
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from multimodal_api import wire
from multimodal_api.engine import Manifest
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Sampling
from multimodal_recipes.audio import preprocess
from multimodal_recipes.first_question import first_prompt
from multimodal_recipes.recipe import Recipe
from multimodal_recipes.tokenizer import Tokenizer
from multimodal_recipes.waves import Wave, to_mono
from multimodal_server.answers import Responder
from multimodal_server.chat import read_chat
from multimodal_server.engine import ServedEngine
from multimodal_server.limits import SOUND_NAMES, read_question
from multimodal_server.metrics import Metrics
from multimodal_server.openai_schema import ChatRequest
from multimodal_server.questions import MAX_SECONDS, Prepared, Question, Said, prepare
from multimodal_server.worker_client import WorkerClient
from support.answering import answer
from support.sounds import FRONT_END, RATE, SALM, TEMPLATE, chirp, noise
from support.tiny_engine import RECIPE, build_inputs
from support.tiny_tokenizer import write_tokenizer
from tests.unit.server.test_answers import Scripted

HEARING = Recipe.model_validate(
    RECIPE.model_dump() | {"family": Family.SALM, "vision": None, "audio": SALM, "template": TEMPLATE}
)
SOUND = chirp(2.0)
Tensors = dict[str, NDArray[Any]]


def served(folder: Path, recipe: Recipe = HEARING, **limits: int) -> ServedEngine:
    write_tokenizer(folder / "tokenizer.json")
    tokenizer = Tokenizer(folder / "tokenizer.json", add_bos=False)
    manifest = Manifest.model_construct(inputs=build_inputs(**limits))
    return ServedEngine(manifest, recipe, tokenizer, frozenset({2, 4}))


@pytest.fixture
def engine(tmp_path: Path) -> ServedEngine:
    return served(tmp_path)


def tensors(text: str = "what?", signal: NDArray[np.float32] = SOUND, length: int | None = None) -> Tensors:
    return {
        "input_text": np.array([[text.encode()]], dtype=object),
        "input_signal": signal[None],
        "input_signal_length": np.array([[len(signal) if length is None else length]], np.int32),
    }


def prepared(engine: ServedEngine, asked: Tensors) -> Prepared:
    return prepare(read_question(asked, engine.limits, engine.recipe), engine)


def text_of(engine: ServedEngine, ready: Prepared) -> str:
    (span,) = ready.media[0].spans
    assert span.start == 0
    return engine.tokenizer.decode(ready.prompt.ids[span.length :])


def test_the_inputs_are_the_modality_s(engine: ServedEngine) -> None:
    assert engine.inputs == wire.AUDIO_INPUTS
    assert replace(engine, recipe=RECIPE).inputs == wire.VISION_INPUTS
    names = [(tensor.name, tensor.datatype, tensor.shape, tensor.optional) for tensor in wire.AUDIO_INPUTS[:3]]
    assert names == [
        ("input_text", "BYTES", (-1,), False),
        ("input_signal", "FP32", (-1,), False),
        ("input_signal_length", "INT32", (1,), False),
    ]


def test_the_worker_is_given_the_frames_of_training(engine: ServedEngine) -> None:
    ready = prepared(engine, tensors())
    (medium,) = ready.media
    wanted = preprocess(SOUND, FRONT_END, at="sound")
    assert medium.shape == (1, *wanted.shape) == (1, 201, 80)
    assert np.array_equal(np.frombuffer(ready.buffers[0], np.float32).reshape(wanted.shape), wanted)
    assert [span.length for span in medium.spans] == [SALM.rows(len(SOUND))] == [4]
    assert text_of(engine, ready) == "Q: what?\nA:"


def test_what_lies_behind_the_length_is_padding(engine: ServedEngine) -> None:
    padded = np.concatenate([SOUND, np.full(9_000, np.nan, np.float32)])
    one, other = (prepared(engine, asked) for asked in (tensors(), tensors(signal=padded, length=len(SOUND))))
    assert one.media == other.media
    assert bytes(one.buffers[0]) == bytes(other.buffers[0])


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ("Q: what? A:", "what?"),
        ("Q: what?\nA:", "what?"),
        (" Q:what? A: ", "what?"),
        ("what?", "what?"),
        ("Q: what?", "Q: what?"),
        ("what? A:", "what? A:"),
        ("Q: one? A: two Q: what? A:", "one? A: two Q: what?"),
    ],
)
def test_a_frame_that_the_client_wrote_is_not_written_twice(engine: ServedEngine, sent: str, asked: str) -> None:
    assert text_of(engine, prepared(engine, tensors(sent))) == f"Q: {asked}\nA:"


REFUSED: dict[str, tuple[Tensors, str, str]] = {
    "no text": (tensors(" "), "input_text", "is empty"),
    "an empty frame": (tensors("Q: A:"), "input_text", "is empty"),
    "two rows": (tensors() | {"input_signal": np.zeros((2, 9_000), np.float32)}, "input_signal", "holds 2 sounds"),
    "two lengths": (tensors() | {"input_signal_length": np.ones((1, 2), np.int32)}, "input_signal_length", "2 values"),
    "no length": (tensors(length=0), "input_signal_length", "is 0, and input_signal holds 32000"),
    "a long length": (tensors(length=32_001), "input_signal_length", "is 32001"),
    "a negative length": (tensors(length=-1), "input_signal_length", "is -1"),
    "too short": (tensors(length=256), "input_signal", "shape [256]"),
    "no number": (tensors(signal=np.full(9_000, np.inf, np.float32)), "input_signal", "not finite"),
}


@pytest.mark.parametrize(("asked", "at", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_sound_is_refused(engine: ServedEngine, asked: Tensors, at: str, problem: str) -> None:
    with pytest.raises(ProductError) as refused:
        prepared(engine, asked)
    failure = refused.value.failure
    assert (failure.reason, failure.at) == (Reason.REQUEST_REFUSED, at)
    assert problem in failure.problem
    assert failure.remedy


def test_a_sound_is_as_long_as_the_engine_has_room_for(tmp_path: Path) -> None:
    engine = served(tmp_path, max_multimodal_len=3)
    most = 3 * 64 * FRONT_END.hop - 1
    assert prepared(engine, tensors(signal=noise(most))).prompt.media_length == 3
    with pytest.raises(ProductError, match=r"lasts 1\.92 seconds; send at most 1\.9, .*maxMultimodalLen \(3\)"):
        prepared(engine, tensors(signal=noise(most + 1)))


def test_a_sound_is_never_longer_than_the_encoder_s_memory(tmp_path: Path) -> None:
    engine = served(tmp_path, max_multimodal_len=3_000, max_input_len=3_000)
    with pytest.raises(ProductError, match=rf"lasts 121\.00 seconds; send at most {MAX_SECONDS}\.0$"):
        prepared(engine, tensors(signal=np.zeros((MAX_SECONDS + 1) * RATE, np.float32)))


def asking(*content: str | Wave | NDArray[np.uint8]) -> Question:
    return Question(turns=(Said(content),), sampling=Sampling(), names=SOUND_NAMES, max_output_len=4)


def test_a_recording_is_mixed_down_and_resampled(engine: ServedEngine) -> None:
    wave = Wave(np.stack([noise(44_100), noise(44_100) * 2], axis=1), 44_100)
    ready = prepare(asking(wave, "what?"), engine)
    wanted = preprocess(to_mono(wave, RATE), FRONT_END, at="sound")
    assert np.array_equal(np.frombuffer(ready.buffers[0], np.float32).reshape(wanted.shape), wanted)


def test_a_sound_stands_in_front_wherever_it_was_said(engine: ServedEngine) -> None:
    wave = Wave(SOUND[:, None], RATE)
    assert text_of(engine, prepare(asking("be ", "brief", wave), engine)) == "Q: be brief\nA:"


def test_a_later_turn_is_framed_as_the_first(engine: ServedEngine) -> None:
    turns = (Said((Wave(SOUND[:, None], RATE), "one?"), "two"), Said(("three?",)))
    assert text_of(engine, prepare(replace(asking(), turns=turns), engine)) == "Q: one?\nA: two[EOG]Q: three?\nA:"


def test_two_sounds_in_a_turn_are_refused(engine: ServedEngine) -> None:
    wave = Wave(SOUND[:, None], RATE)
    with pytest.raises(ProductError, match="holds 2 sounds in one turn; send one"):
        prepare(asking(wave, "what?", wave), engine)


def chat(*parts: dict[str, Any]) -> ChatRequest:
    return ChatRequest.model_validate({"model": "tiny", "messages": [{"role": "user", "content": list(parts)}]})


def input_audio(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


RECORDING = (noise(44_100) * 2**15).astype("<i2")


def wav() -> bytes:
    """The recording in two equal channels."""
    file = io.BytesIO()
    with wave_files.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(44_100)
        writer.writeframes(np.stack([RECORDING, RECORDING], axis=1).tobytes())
    return file.getvalue()


@pytest.mark.parametrize(
    "part",
    [
        input_audio(base64.b64encode(wav()).decode()),
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{base64.b64encode(wav()).decode()}"}},
        {"type": "audio_url", "audio_url": {"url": "https://example.org/a.wav"}},
    ],
    ids=["inline", "data URI", "address"],
)
def test_a_part_is_the_file(engine: ServedEngine, part: dict[str, Any]) -> None:
    asked = chat({"type": "text", "text": "what?"}, part)
    fetched = {"https://example.org/a.wav": wav()}
    ready = prepare(read_chat(asked, engine.limits, engine.recipe, fetched), engine)
    wanted = to_mono(Wave(RECORDING[:, None].astype(np.float32) / np.float32(2**15), 44_100), RATE)
    frames = preprocess(wanted, FRONT_END, at="sound")
    assert np.array_equal(np.frombuffer(ready.buffers[0], np.float32).reshape(frames.shape), frames)
    assert text_of(engine, ready) == "Q: what?\nA:"


@pytest.mark.parametrize(("data", "problem"), [("*", "not valid base64"), ("aGk=", "no WAV file")])
def test_what_is_no_file_is_refused_by_its_place(engine: ServedEngine, data: str, problem: str) -> None:
    with pytest.raises(ProductError, match=problem) as refused:
        read_chat(chat(input_audio(data)), engine.limits, engine.recipe, {})
    assert refused.value.failure.at == "messages[0].content[0].input_audio.data"


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 192_000])
def test_rows_are_counted_before_anything_is_resampled(rate: int) -> None:
    for samples in (700, 9_999, 22_051):
        wave = Wave(noise(samples)[:, None], rate)
        assert wave.samples_at(RATE) == len(to_mono(wave, RATE))


def test_a_medium_of_the_other_kind_is_refused(engine: ServedEngine) -> None:
    picture = np.zeros((1, 30, 40, 3), np.uint8)
    for recipe, medium, problem in (
        (HEARING, picture, "holds a picture, and this model takes sounds"),
        (RECIPE, Wave(SOUND[:, None], RATE), "holds a sound, and this model takes pictures"),
    ):
        with pytest.raises(ProductError, match=problem):
            prepare(asking(medium, "what?"), replace(engine, recipe=recipe))


def test_the_warm_up_is_a_tone(engine: ServedEngine) -> None:
    worker = Scripted(engine.tokenizer, "yes")
    Responder(engine, cast("WorkerClient", worker), Metrics()).warm_up()
    (request,) = worker.requests
    assert [medium.shape for medium in request.media] == [(1, 51, 80)]
    assert request.token_ids == first_prompt(HEARING, engine.tokenizer).ids
    assert np.isfinite(np.frombuffer(worker.buffers[0], np.float32)).all()


def test_an_answer_ends_at_the_family_s_stop_string(tmp_path: Path) -> None:
    engine = served(tmp_path, HEARING.model_copy(update={"stop_strings": ("[EOG]",)}))
    worker = Scripted(engine.tokenizer, " two beeps[EOG] and more")
    assert answer(Responder(engine, cast("WorkerClient", worker), Metrics()), tensors()) == ["two beeps"]
