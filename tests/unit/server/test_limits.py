from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from multimodal_api import wire
from multimodal_api.engine import Limits
from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_recipes.images import MAX_PIXELS
from multimodal_recipes.prompt import Prompt, Span
from multimodal_recipes.recipe import FrameSampling, Recipe, VideoLayout, VideoRecipe
from multimodal_server.limits import MAX_TEXT_BYTES, NAMES, read_question
from multimodal_server.questions import Question, check_prompt
from support.tiny_engine import RECIPE

LIMITS = Limits(max_input_len=20, max_output_len=16, max_batch_size=4, max_multimodal_len=10, vision_max_batch_size=1)
DTYPES = {"INT64": np.int64, "FP32": np.float32}
SCALARS = [tensor for tensor in wire.VISION_INPUTS if tensor.datatype in DTYPES]


def text(value: bytes | list[bytes]) -> NDArray[np.object_]:
    return np.array([value if isinstance(value, list) else [value]], dtype=object)


def scalar(tensor: wire.Tensor, value: Any) -> NDArray[Any]:
    return np.array([[value]], dtype=DTYPES[tensor.datatype])


def question(recipe: Recipe = RECIPE, **tensors: NDArray[Any]) -> Question:
    frames = np.zeros((1, 1, 5, 7, 3), np.uint8)
    return read_question({"input_text": text(b"hi"), "input_media": frames} | tensors, LIMITS, recipe)


def refusal(**tensors: NDArray[Any]) -> Failure:
    with pytest.raises(ProductError) as caught:
        question(**tensors)
    failure = caught.value.failure
    assert failure.reason is Reason.REQUEST_REFUSED
    return failure


def test_every_number_may_be_left_out() -> None:
    asked = question()
    (said,) = asked.turns
    frames, words = said.content
    assert words == "hi"
    assert not isinstance(frames, str)
    assert frames.shape == (1, 5, 7, 3)
    assert asked.copies == 1
    assert asked.max_output_len == LIMITS.max_output_len  # less than the wire's default of 30
    assert asked.sampling.greedy
    assert (asked.sampling.temperature, asked.sampling.repetition_penalty) == (1, 1)


def test_numbers_are_taken_as_they_are() -> None:
    asked = question(
        batch_size=scalar(wire.BATCH_SIZE, 3),
        max_output_len=scalar(wire.MAX_OUTPUT_LEN, 5),
        top_k=scalar(wire.TOP_K, 7),
        top_p=scalar(wire.TOP_P, 0.5),
        temperature=scalar(wire.TEMPERATURE, 0.25),
        repetition_penalty=scalar(wire.REPETITION_PENALTY, 2),
        num_beams=scalar(wire.NUM_BEAMS, 1),
        lora_uids=text([b"-1", b"-1"]),
    )
    assert (asked.copies, asked.max_output_len) == (3, 5)
    sampling = asked.sampling
    assert (sampling.top_k, sampling.top_p, sampling.temperature, sampling.repetition_penalty) == (7, 0.5, 0.25, 2)


VIDEO = VideoRecipe(num_frames=4, sampling=FrameSampling.ROUNDED, layout=VideoLayout.FRAMES)


def watching(family: Family) -> Recipe:
    return RECIPE.model_copy(update={"family": family, "vision": RECIPE.seeing().model_copy(update={"video": VIDEO})})


def test_families_that_watch_take_many_frames() -> None:
    frames = np.zeros((1, 9, 5, 7, 3), np.uint8)
    (said,) = question(watching(Family.VIDEO_NEVA), input_media=frames).turns
    assert [part if isinstance(part, str) else part.shape for part in said.content] == [(9, 5, 7, 3), "hi"]
    assert "1 picture" in str(refusal(input_media=frames))


@pytest.mark.parametrize(
    ("family", "words"),
    [(Family.LITA, ["at ", None, "when?"]), (Family.VIDEO_NEVA, [None, "at <image>\nwhen?"])],
    ids=["its place", "text"],
)
def test_media_stand_where_nemo_s_runner_put_them(family: Family, words: list[str | None]) -> None:
    (said,) = question(watching(family), input_text=text(b"at <image>\nwhen?")).turns
    assert [part if isinstance(part, str) else None for part in said.content] == words


def test_two_questions_have_two_seeds() -> None:
    assert question().sampling.seed != question().sampling.seed


@pytest.mark.parametrize(
    ("tensors", "at", "words"),
    [
        ({"input_text": text(b"")}, "input_text", ["empty", "send a question"]),
        ({"input_text": text(b" \n\t")}, "input_text", ["empty"]),
        ({"input_text": text("\N{NO-BREAK SPACE}".encode())}, "input_text", ["empty"]),
        ({"input_text": text([b"a", b"b"])}, "input_text", ["2 texts", "[1, 2]", "one text"]),
        ({"input_text": text([])}, "input_text", ["0 texts"]),
        ({"input_text": text(b"ab\xff")}, "input_text", ["byte 2", "UTF-8"]),
        ({"input_text": text(b"x" * (MAX_TEXT_BYTES + 1))}, "input_text", [str(MAX_TEXT_BYTES), "shorten"]),
        ({"input_media": np.zeros((1, 2, 5, 7, 3), np.uint8)}, "input_media", ["2 pictures", "[1, 2, 5, 7, 3]", "1"]),
        ({"input_media": np.zeros((1, 0, 5, 7, 3), np.uint8)}, "input_media", ["0 pictures"]),
        ({"input_media": np.zeros((2, 1, 5, 7, 3), np.uint8)}, "input_media", ["2 pictures"]),
        ({"input_media": np.zeros((1, 1, 0, 7, 3), np.uint8)}, "input_media", ["height 0", "at least 1"]),
        (
            {"input_media": np.broadcast_to(np.uint8(0), (1, 1, MAX_PIXELS + 1, 1, 3))},
            "input_media",
            [str(MAX_PIXELS + 1), "scale it down", str(MAX_PIXELS)],
        ),
        ({"batch_size": scalar(wire.BATCH_SIZE, 0)}, "batch_size", ["is 0", "between 1 and 4"]),
        ({"batch_size": scalar(wire.BATCH_SIZE, 5)}, "batch_size", ["is 5", "spec.limits.maxBatchSize is 4"]),
        ({"max_output_len": scalar(wire.MAX_OUTPUT_LEN, 0)}, "max_output_len", ["is 0", "between 1 and 16"]),
        ({"max_output_len": scalar(wire.MAX_OUTPUT_LEN, 17)}, "max_output_len", ["spec.limits.maxOutputLen is 16"]),
        ({"max_output_len": np.array([[1, 2]])}, "max_output_len", ["2 values", "[1, 2]", "one value"]),
        ({"max_output_len": np.empty((1, 0), np.int64)}, "max_output_len", ["0 values"]),
        ({"top_k": scalar(wire.TOP_K, -1)}, "top_k", ["is -1", "between 0"]),
        ({"top_p": scalar(wire.TOP_P, 1.5)}, "top_p", ["is 1.5", "between 0 and 1"]),
        ({"temperature": scalar(wire.TEMPERATURE, float("nan"))}, "temperature", ["nan"]),
        ({"temperature": scalar(wire.TEMPERATURE, float("inf"))}, "temperature", ["inf"]),
        ({"temperature": scalar(wire.TEMPERATURE, -1)}, "temperature", ["-1"]),
        ({"repetition_penalty": scalar(wire.REPETITION_PENALTY, 0)}, "repetition_penalty", ["is 0"]),
        ({"num_beams": scalar(wire.NUM_BEAMS, 2)}, "num_beams", ["is 2", "no beam search", "send 1"]),
        ({"num_beams": scalar(wire.NUM_BEAMS, 0)}, "num_beams", ["is 0"]),
        ({"lora_uids": text(b"mine")}, "lora_uids", ["adapter", '"-1"']),
        ({"lora_uids": text([b"-1", b"mine"])}, "lora_uids", ["adapter"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_names_field_value_and_remedy(tensors: dict[str, NDArray[Any]], at: str, words: list[str]) -> None:
    failure = refusal(**tensors)
    assert failure.at == at
    assert failure.remedy
    assert all(word in str(failure) for word in words), str(failure)


@pytest.mark.parametrize("name", ["input_text", "input_media"])
def test_a_tensor_that_is_missing_is_named(name: str) -> None:
    tensors = {"input_text": text(b"hi"), "input_media": np.zeros((1, 1, 5, 7, 3), np.uint8)}
    del tensors[name]
    with pytest.raises(ProductError, match=f"{name}: is missing; send it") as caught:
        read_question(tensors, LIMITS, RECIPE)
    assert caught.value.failure.reason is Reason.REQUEST_REFUSED


def test_a_refusal_does_not_repeat_the_user_s_text() -> None:
    assert "secret" not in str(refusal(input_text=text(b"secret" * MAX_TEXT_BYTES)))
    assert "secret" not in str(refusal(lora_uids=text(b"secret")))


@given(st.data())
def test_any_number_is_within_its_bounds_or_refused(data: st.DataObject) -> None:
    tensor = data.draw(st.sampled_from(SCALARS))
    value = data.draw(
        st.integers(-(2**63), 2**63 - 1) if tensor.datatype == "INT64" else st.floats(width=32, allow_nan=True)
    )
    refused = None
    try:
        asked = question(**{tensor.name: scalar(tensor, value)})
    except ProductError as error:
        refused = error.failure
    if refused is not None:
        assert refused.at == tensor.name
        return
    assert 1 <= asked.copies <= LIMITS.max_batch_size
    assert 1 <= asked.max_output_len <= LIMITS.max_output_len


def prompt(text_tokens: int, media_tokens: int) -> Prompt:
    media = (Span(0, media_tokens),) if media_tokens else ()
    return Prompt((0,) * (text_tokens + media_tokens), media)


@pytest.mark.parametrize(
    ("given", "max_output_len", "max_positions", "at", "words"),
    [
        (prompt(10, 10), 10, 30, None, []),
        (prompt(9, 11), 1, 100, "input_media", ["11", "10", "maxMultimodalLen"]),
        (prompt(11, 10), 1, 100, "input_text", ["21 tokens", "10 of them media", "20", "by 1 tokens", "maxInputLen"]),
        (prompt(10, 10), 11, 30, "max_output_len", ["30 positions", "at most 10 tokens"]),
    ],
    ids=["fits exactly", "media", "prompt", "positions"],
)
def test_a_prompt_that_has_no_room(
    given: Prompt, max_output_len: int, max_positions: int, at: str | None, words: list[str]
) -> None:
    if at is None:
        check_prompt(given, max_output_len=max_output_len, limits=LIMITS, max_positions=max_positions, names=NAMES)
        return
    with pytest.raises(ProductError) as caught:
        check_prompt(given, max_output_len=max_output_len, limits=LIMITS, max_positions=max_positions, names=NAMES)
    assert caught.value.failure.at == at
    assert all(word in str(caught.value.failure) for word in words), str(caught.value.failure)
