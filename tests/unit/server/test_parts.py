"""Pictures and videos in the parts of a chat message: what is taken, what is refused, and before which work."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_recipes import images, videos
from multimodal_recipes.recipe import FrameSampling, Recipe, VideoLayout, VideoRecipe
from multimodal_recipes.videos import Video
from multimodal_server import parts as module
from multimodal_server.chat import read_chat
from multimodal_server.openai_schema import ChatRequest
from multimodal_server.questions import Shown
from support.clips import LOSSLESS, animate, encode, noise
from support.sounds import SALM, TEMPLATE
from support.tiny_engine import RECIPE, TOKENS_PER_IMAGE, limits

CLIP = noise(12)
MP4 = encode(CLIP, LOSSLESS["mp4"])
PNG = animate(CLIP[:1], "PNG")
FETCHED = {"https://example.org/a.mp4": MP4, "HTTP://example.org/a.png": PNG}
HEARING = Recipe.model_validate(
    RECIPE.model_dump() | {"family": Family.SALM, "vision": None, "audio": SALM, "template": TEMPLATE}
)


def watching(num_frames: int | None = 2) -> Recipe:
    video = VideoRecipe(num_frames=num_frames, sampling=FrameSampling.TRUNCATED, layout=VideoLayout.FRAMES)
    return RECIPE.model_copy(update={"vision": RECIPE.seeing().model_copy(update={"video": video})})


def inline(data: bytes, media_type: str = "video/mp4") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def film(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def still(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def read(recipe: Recipe, *parts: dict[str, Any], room: int = 64) -> tuple[str | Shown, ...]:
    request = ChatRequest.model_validate({"model": "tiny", "messages": [{"role": "user", "content": list(parts)}]})
    return read_chat(request, limits(max_multimodal_len=room), recipe, FETCHED).turns[0].content


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(MP4, "video/mp4"), (encode(CLIP, LOSSLESS["mkv"]), "video/x-matroska"), (animate(CLIP, "PNG"), "image/apng")],
)
def test_a_video_is_the_frames_that_the_model_sees(data: bytes, media_type: str) -> None:
    video, text = read(watching(3), film(inline(data, media_type)), {"type": "text", "text": "what?"})
    assert isinstance(video, Video)
    assert np.array_equal(video.frames, CLIP[[0, 5, 11]])
    assert text == "what?"


def test_what_was_fetched_is_read_as_what_was_sent() -> None:
    video, picture = read(watching(3), *(film(url) if "mp4" in url else still(url) for url in FETCHED), room=96)
    assert isinstance(video, Video)
    assert np.array_equal(video.frames, CLIP[[0, 5, 11]])
    assert np.array_equal(picture, CLIP[:1])


def test_a_video_tells_how_long_it_is() -> None:
    (video,) = read(watching(), film(inline(MP4)))
    assert isinstance(video, Video)
    assert video.seconds == pytest.approx(1.2)


AUDIO = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}
PART = "messages[0].content[0]"
URL = f"{PART}.video_url.url"
REFUSED: dict[str, tuple[Recipe, dict[str, Any], str, str]] = {
    "an address": (watching(), film("https://example.org/b.mp4"), URL, "no address that is fetched; send the content"),
    "a file of the server": (watching(), film("file:///etc/passwd"), URL, "no address that is fetched"),
    "no base64": (watching(), film("data:video/mp4;base64,*"), URL, "not valid base64; encode the file's bytes"),
    "no video": (watching(), film(inline(b"hi")), URL, "no picture; give a picture of one of these formats: GIF"),
    "a playlist": (watching(), film(inline(b"#EXTM3U\nfile:///etc/passwd\n")), URL, "no picture"),
    "damaged": (watching(), film(inline(MP4[:200])), URL, "is damaged: .*; copy it again"),
    "to a model of pictures": (
        RECIPE,
        film(inline(MP4)),
        PART,
        "takes pictures; send a picture, or ask a model of vid",
    ),
    "to a model of sounds": (HEARING, film(inline(MP4)), PART, "takes sounds; send a sound, or ask a model of video-"),
    "a picture to a model of sounds": (HEARING, still(inline(PNG)), PART, "takes sounds; send a sound"),
    "a sound to a model that sees": (watching(), AUDIO, PART, "this model sees; send a picture"),
    "no room": (watching(5), film(inline(MP4)), URL, "take 80 positions, and the engine was built for 64; send fewer"),
    "no room for all frames": (watching(None), film(inline(MP4)), URL, "take 192 positions"),
}


@pytest.mark.parametrize(("recipe", "part", "at", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_the_part_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, part: dict[str, Any], at: str, words: str
) -> None:
    monkeypatch.setattr(videos, "_places", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(ProductError, match=words) as refused:
        read(recipe, part)
    assert (refused.value.failure.reason, refused.value.failure.at) == (Reason.REQUEST_REFUSED, at)


def test_what_has_no_room_beside_the_others_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, two = still(inline(PNG)), film(inline(MP4))
    room = 3 * TOKENS_PER_IMAGE
    assert len(read(RECIPE, *[picture] * 3, room=room)) == 3
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda data, at: decoded.append(at) or decode(data, at=at))
    with pytest.raises(ProductError, match="take 64 positions") as refused:
        read(RECIPE, *[picture] * 5, room=room)
    assert refused.value.failure.at == "messages[0].content[3].image_url.url"
    assert len(decoded) == 3
    with pytest.raises(ProductError, match="take 64 positions"):
        read(watching(), two, two, room=room)


def test_all_media_of_a_request_share_the_room_for_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    two, picture = film(inline(MP4)), still(inline(PNG))
    monkeypatch.setattr(module, "MAX_DECODED", 5 * CLIP[0].nbytes)
    assert len(read(watching(), two, two, picture, room=96)) == 3
    with pytest.raises(
        ProductError, match="2 frames of 34 by 48 take 9792 bytes, where there is room for 4896"
    ) as refused:
        read(watching(), two, two, two, room=96)
    assert refused.value.failure.at == "messages[0].content[2].video_url.url"
    with pytest.raises(ProductError, match="take more than 24480 bytes as RGB") as refused:
        read(watching(), two, two, picture, picture, room=128)
    assert refused.value.failure.at == "messages[0].content[3].image_url.url"


def test_a_video_that_is_chosen_from_twice_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_packets", lambda *_, **__: 15)
    two = film(inline(MP4))
    assert len(read(watching(), two, two, room=4 * TOKENS_PER_IMAGE)) == 2
