"""Conversations and videos on their way to the worker, and answers on their way back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multimodal_api.engine import Manifest
from multimodal_api.errors import ProductError
from multimodal_api.worker_protocol import Done, FinishReason, Sampling, Timing, Tokens
from multimodal_recipes import first_question
from multimodal_recipes.recipe import FrameSampling, Recipe, VideoLayout, VideoRecipe
from multimodal_recipes.tokenizer import Tokenizer
from multimodal_server.engine import ServedEngine
from multimodal_server.metrics import Metrics
from multimodal_server.questions import Frames, Names, Question, Said, prepare
from multimodal_server.replies import Reply
from support.tiny_engine import IMAGE_SIZE, RECIPE, TOKENS_PER_IMAGE, build_inputs
from support.tiny_tokenizer import write_tokenizer

NAMES = Names("words", "media", "length")
DONE = Done(request_id=1, reason=FinishReason.LENGTH, timing=Timing(queue=0, encode=0, generate=0))


@pytest.fixture
def engine(tmp_path: Path) -> ServedEngine:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", add_bos=False)
    manifest = Manifest.model_construct(inputs=build_inputs())
    return ServedEngine(manifest, RECIPE, tokenizer, frozenset({2, 4}))


def video(**changes: Any) -> Recipe:
    fields = {"num_frames": 2, "sampling": FrameSampling.ROUNDED, "layout": VideoLayout.FRAMES} | changes
    vision = RECIPE.seeing().model_copy(update={"video": VideoRecipe(**fields)})
    return RECIPE.model_copy(update={"vision": vision})


def grey(*values: int) -> Frames:
    return np.stack([np.full((30, 40, 3), value, np.uint8) for value in values])


def asking(*turns: Said, **changes: Any) -> Question:
    return Question(turns=turns, sampling=Sampling(), names=NAMES, **({"max_output_len": 4} | changes))


def test_a_conversation_with_a_picture_in_each_turn(engine: ServedEngine) -> None:
    question = asking(Said(("a", grey(0)), "yes"), Said((grey(255), "b")))
    prepared = prepare(question, engine)
    assert [medium.shape for medium in prepared.media] == [(1, 3, IMAGE_SIZE, IMAGE_SIZE)] * 2
    first, second = ([*medium.spans] for medium in prepared.media)
    assert [span.length for span in first + second] == [TOKENS_PER_IMAGE] * 2
    assert first[0].start + TOKENS_PER_IMAGE < second[0].start
    dark, bright = (float(np.frombuffer(buffer, np.float32).mean()) for buffer in prepared.buffers)
    assert dark < 0 < bright
    text = engine.tokenizer.decode(prepared.prompt.ids[first[0].start + TOKENS_PER_IMAGE : second[0].start])
    assert "yes" in text


def test_a_video_s_frames_are_chosen_before_they_are_resized(engine: ServedEngine) -> None:
    watching = replace(engine, recipe=video())
    prepared = prepare(asking(Said((grey(0, 10, 20, 255), "what?"))), watching)
    (medium,) = prepared.media
    assert medium.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert [span.length for span in medium.spans] == [2 * TOKENS_PER_IMAGE]


def test_a_medium_may_have_several_places(engine: ServedEngine) -> None:
    recipe = video(layout=VideoLayout.TEMPORAL_ALL_RESOLUTION, sample_frames=1, video_start=" from ", video_end=" to ")
    prepared = prepare(asking(Said((grey(0, 255), "what?"))), replace(engine, recipe=recipe))
    assert [span.length for span in prepared.media[0].spans] == [TOKENS_PER_IMAGE, 2]


def test_a_question_without_media(engine: ServedEngine) -> None:
    prepared = prepare(asking(Said(("hello",))), engine)
    assert prepared.media == prepared.buffers == ()


def test_the_length_is_what_there_is_room_for_when_nobody_says(engine: ServedEngine) -> None:
    assert prepare(asking(Said(("hello",)), max_output_len=None), engine).max_new_tokens == 64
    short = replace(engine, recipe=RECIPE.model_copy(update={"max_positions": 60}))
    prepared = prepare(asking(Said(("hello",)), max_output_len=None), short)
    assert prepared.max_new_tokens == 60 - len(prepared.prompt.ids)


def test_refusals_speak_the_port_s_language(engine: ServedEngine) -> None:
    for question, at in (
        (asking(Said((grey(0), grey(0), grey(0), grey(0), grey(0), "x"))), "media"),
        (asking(Said(("x " * 300,))), "words"),
        (asking(Said(("x",)), max_output_len=10_000), "length"),
    ):
        with pytest.raises(ProductError) as refused:
            prepare(question, engine)
        assert refused.value.failure.at == at


def pieces(engine: ServedEngine, text: str, **changes: Any) -> tuple[list[str], Reply]:
    prepared = prepare(asking(Said(("x",)), max_output_len=60, **changes), engine)
    reply = Reply(prepared, engine, Metrics(), request_id=1, sampling=Sampling(), stream=True)
    given = []
    for token in engine.tokenizer.encode((text,)).ids:
        given.append(reply.feed(Tokens(request_id=1, token_ids=(token,))).text)
        if reply.finish is not None:
            return given, reply
    given.append(reply.feed(DONE).text)
    return given, reply


@pytest.mark.parametrize("stops", [(), ("END",), ("d",)])
def test_tokens_that_come_with_the_end_are_as_if_they_had_come_before(
    engine: ServedEngine, stops: tuple[str, ...]
) -> None:
    given, streamed = pieces(engine, " a b END d ", stops=stops)
    prepared = prepare(asking(Said(("x",)), max_output_len=60, stops=stops), engine)
    whole = Reply(prepared, engine, Metrics(), request_id=1, sampling=Sampling(), stream=False)
    ids = engine.tokenizer.encode((" a b END d ",)).ids
    piece = whole.feed(DONE.model_copy(update={"rest": Tokens(request_id=1, token_ids=ids)}))
    assert piece.text == "".join(given)
    assert piece.token_ids == ids
    assert whole.finish is streamed.finish


def test_blanks_around_an_answer_are_left_out_wherever_they_come(engine: ServedEngine) -> None:
    given, reply = pieces(engine, "  a b  \n c  \n")
    assert "".join(given) == "a b  \n c"
    assert reply.finish is FinishReason.LENGTH
    assert all(not piece.endswith(" ") for piece in given)


def test_the_request_s_own_stops_end_an_answer(engine: ServedEngine) -> None:
    given, reply = pieces(engine, "a b c END d", stops=("END",))
    assert "".join(given) == "a b c"
    assert reply.finish is FinishReason.STOP


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        video(),
        video(num_frames=4, sampling=FrameSampling.TRUNCATED),
        video(layout=VideoLayout.TEMPORAL_ALL_RESOLUTION, sample_frames=1, video_start=" from ", video_end=" to "),
    ],
    ids=["a picture", "a video", "a video of four frames", "a video with words between its rows"],
)
def test_the_builder_makes_room_for_what_the_server_asks_first(engine: ServedEngine, recipe: Recipe) -> None:
    asked = Said((first_question.show(recipe), recipe.template.default_text))
    prepared = prepare(asking(asked), replace(engine, recipe=recipe))
    assert prepared.prompt == first_question.first_prompt(recipe, engine.tokenizer)
