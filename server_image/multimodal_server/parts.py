"""Media in the parts of a chat message: from bytes to pictures, videos and sounds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from multimodal_recipes import images, videos, waves
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.layout import lay_out
from multimodal_server.openai_schema import AudioPart, AudioUrlPart, ImagePart, TextPart, VideoPart
from multimodal_server.questions import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from multimodal_api.engine import Limits
    from multimodal_recipes.recipe import Recipe, VisionRecipe
    from multimodal_server.openai_schema import Part
    from multimodal_server.questions import Shown

Named = ImagePart | VideoPart | AudioUrlPart
"""A part that says where its medium is."""

MAX_DECODED: Final = videos.MAX_BYTES
"""Of all pictures and chosen frames of one request as RGB, in bytes."""
_BASE64: Final = TypeAdapter(bytes, config=ConfigDict(val_json_bytes="base64"))
"""Six times as fast as the standard library, during which nothing else runs: 13 ms for a photograph of 4 MB."""
_DATA_URI: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[^;,]*)*;base64,(.*)", re.DOTALL)


def check_kind(part: Part, recipe: Recipe, at: str) -> None:
    """Refuse a medium that the model was not trained on.

    Args:
        part: of a message.
        recipe: of the model.
        at: what to call the part in an error.

    Raises:
        ProductError: of another kind.
    """
    vision = recipe.vision
    match part:
        case AudioPart() | AudioUrlPart() if recipe.audio is None:
            raise refuse(at, "is a sound, and this model sees", "send a picture, or ask a model of salm")
        case ImagePart() if vision is None:
            raise refuse(at, "is a picture, and this model takes sounds", "send a sound, or ask a model that sees")
        case VideoPart() if vision is None or vision.video is None:
            kind = "sound" if vision is None else "picture"
            raise refuse(
                at,
                f"is a video, and this model takes {kind}s",
                f"send a {kind}, or ask a model of video-neva, lita or vita",
            )


class Place(NamedTuple):
    """Where a medium is."""

    at: str
    """What to call it in an error."""
    url: str
    example: str
    """How its content begins as a data URI."""


def place(part: Named, at: str) -> Place:
    """Say where a part's medium is."""
    match part:
        case ImagePart(image_url=image):
            return Place(f"{at}.image_url.url", image.url, "data:image/png;base64,")
        case VideoPart(video_url=video):
            return Place(f"{at}.video_url.url", video.url, "data:video/mp4;base64,")
        case AudioUrlPart(audio_url=audio):
            return Place(f"{at}.audio_url.url", audio.url, "data:audio/wav;base64,")


def addresses(parts: Iterable[tuple[str, Part]], recipe: Recipe) -> dict[str, str]:
    """List the media that are to be fetched.

    Args:
        parts: of what the user says, with what to call each in an error.
        recipe: of the model.

    Returns:
        What to call each address in an error, by address.

    Raises:
        ProductError: the model does not take such media.
    """
    found: dict[str, str] = {}
    for at, part in parts:
        check_kind(part, recipe, at)
        if isinstance(part, Named):
            where = place(part, at)
            if where.url[:8].lower().startswith(("http://", "https://")):
                found.setdefault(where.url, where.at)
    return found


class PartReader:
    """Reads the parts of one request.

    The positions that pictures and videos take are counted on the way, and their bytes, so that what has no room is
    never decoded.
    """

    def __init__(self, limits: Limits, recipe: Recipe, fetched: Mapping[str, bytes]) -> None:
        """Begin.

        Args:
            limits: of the engine.
            recipe: of its model.
            fetched: contents of the media that the request names by address, by address.
        """
        self._limits = limits
        self._recipe = recipe
        self._fetched = fetched
        self._positions = 0
        self._left = MAX_DECODED

    def read(self, part: Part, at: str) -> str | Shown:
        """Read one part.

        Args:
            part: of a message.
            at: what to call it in an error.

        Raises:
            ProductError: it cannot be read, the model does not take such media, or the engine has no room for it.
        """
        if isinstance(part, TextPart):
            return part.text
        check_kind(part, self._recipe, at)
        if isinstance(part, AudioPart):
            at = f"{at}.input_audio.data"
            return waves.decode(_bytes(part.input_audio.data, at), at=at)
        where = place(part, at)
        data = self._content(where)
        if isinstance(part, AudioUrlPart):
            return waves.decode(data, at=where.at)
        choose = self._choice(self._recipe.seeing(), where.at)
        if isinstance(part, VideoPart):
            video = videos.read(data, at=where.at, choose=choose, most=self._left)
            self._left -= video.frames.nbytes
            return video
        choose(1)
        picture = images.decode(data, at=where.at)[None]
        self._left -= picture.nbytes
        if self._left < 0:
            raise refuse(
                where.at,
                f"pictures and videos up to this one take more than {MAX_DECODED} bytes as RGB",
                "send fewer, or scale them down",
            )
        return picture

    def _content(self, where: Place) -> bytes:
        if (fetched := self._fetched.get(where.url)) is not None:
            return fetched
        found = _DATA_URI.fullmatch(where.url)
        if found is None:
            raise refuse(
                where.at, "is no data URI, and no address that is fetched", f"send the content: {where.example}..."
            )
        return _bytes(found[1], where.at)

    def _choice(self, vision: VisionRecipe, at: str) -> Callable[[int], Sequence[int]]:
        """Choose frames of a video, or the one of a picture, and count the positions that they take."""
        before, most = self._positions, self._limits.max_multimodal_len

        def choose(total: int) -> Sequence[int]:
            chosen = (0,) if vision.video is None else choose_frames(vision.video, total)
            # Set, not added to: a video that holds less than its headers say is chosen from twice.
            self._positions = before + lay_out(vision, len(chosen)).rows
            if self._positions > most:
                raise refuse(
                    at,
                    f"pictures and videos up to this one take {self._positions} positions, and the engine was built "
                    f"for {most}",
                    "send fewer or shorter ones, or raise spec.limits.maxMultimodalLen",
                )
            return chosen

        return choose


def _bytes(encoded: str, at: str) -> bytes:
    try:
        return _BASE64.validate_python(encoded)
    except ValidationError:
        raise refuse(at, "is not valid base64", "encode the file's bytes as base64, without line breaks") from None
