"""Media in the parts of a chat message: from base64 to pictures, videos and sounds."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from multimodal_recipes import images, videos, waves
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.layout import lay_out
from multimodal_server.openai_schema import AudioPart, ImagePart, TextPart
from multimodal_server.questions import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from multimodal_api.engine import Limits
    from multimodal_recipes.recipe import Recipe, VisionRecipe
    from multimodal_recipes.videos import Video
    from multimodal_recipes.waves import Wave
    from multimodal_server.openai_schema import Part, VideoPart
    from multimodal_server.questions import Frames, Shown

_DATA_URI: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[^;,]*)*;base64,(.*)", re.DOTALL)


class PartReader:
    """Reads the parts of one request.

    The positions that pictures and videos take are counted on the way, so that what has no room is never decoded.
    """

    def __init__(self, limits: Limits, recipe: Recipe) -> None:
        """Begin.

        Args:
            limits: of the engine.
            recipe: of its model.
        """
        self._limits = limits
        self._recipe = recipe
        self._positions = 0

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
        if isinstance(part, AudioPart):
            return self._sound(part, at)
        return self._picture(part, at) if isinstance(part, ImagePart) else self._video(part, at)

    def _sound(self, part: AudioPart, at: str) -> Wave:
        if self._recipe.audio is None:
            raise refuse(at, "is a sound, and this model sees", "send a picture, or ask a model of salm")
        at = f"{at}.input_audio.data"
        return waves.decode(_bytes(part.input_audio.data, at), at=at)

    def _picture(self, part: ImagePart, at: str) -> Frames:
        vision = self._recipe.vision
        if vision is None:
            raise refuse(at, "is a picture, and this model takes sounds", "send a sound, or ask a model that sees")
        at = f"{at}.image_url.url"
        data = _inline(part.image_url.url, at, "picture itself: data:image/png;base64,...")
        self._choice(vision, at)(1)
        return images.decode(data, at=at)[None]

    def _video(self, part: VideoPart, at: str) -> Video:
        vision = self._recipe.vision
        if vision is None or vision.video is None:
            kind = "sound" if vision is None else "picture"
            raise refuse(
                at,
                f"is a video, and this model takes {kind}s",
                f"send a {kind}, or ask a model of video-neva, lita or vita",
            )
        at = f"{at}.video_url.url"
        data = _inline(part.video_url.url, at, "video itself: data:video/mp4;base64,...")
        return videos.read(data, at=at, choose=self._choice(vision, at))

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


def _inline(url: str, at: str, remedy: str) -> bytes:
    found = _DATA_URI.fullmatch(url)
    if found is None:
        raise refuse(at, "is no data URI, and this server fetches nothing", f"send the {remedy}")
    return _bytes(found[1], at)


def _bytes(encoded: str, at: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise refuse(at, "is not valid base64", "encode the file's bytes as base64, without line breaks") from None
