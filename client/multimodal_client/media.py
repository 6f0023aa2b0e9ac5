"""Pictures, videos and sounds from where people have them: a file, a URL, standard input, bytes, an array."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_client import fetch
from multimodal_recipes import images, videos, waves
from multimodal_recipes.frames import thin
from multimodal_recipes.videos import Video
from multimodal_recipes.waves import Wave

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from multimodal_client.fetch import Place
    from multimodal_recipes.videos import Choice

    Media = Place | bytes | NDArray[np.uint8] | NDArray[np.float32] | Wave

MAX_FRAMES: Final = 256
"""Of a video for lita and vita; NeMo's client has the same number."""

_FIELD: Final = "input_media"
_CHANNELS: Final = 3


class Loaded(NamedTuple):
    """A medium as the wire takes it."""

    tensors: Mapping[str, NDArray[Any]]
    """By name, with the batch dimension."""
    seconds: float | None = None
    """Length of a video, where the file tells."""


def load(media: Media, family: Family) -> Loaded:
    """Give a picture, video or sound as the wire takes it.

    Args:
        media: path or http(s) URL of a file, "-" for standard input, content of a file, or what is in one: a picture
            [height, width, 3] or a video [frames, height, width, 3] of uint8 RGB, a sound of `wire.SAMPLE_RATE`
            [samples] of float32, or one of another rate or of several channels as a `Wave`.
        family: of the model: neva and vila take a picture, salm a sound, the others a video.

    Returns:
        The tensors, and how long a video is. Pictures and videos have their full resolution: the server
        resizes. Of a video all frames, for lita and vita at most `MAX_FRAMES` of them, evenly spread. A sound is mixed
        and resampled here: NeMo's client sends it as it is, and its server then hears it at another speed.

    Raises:
        ProductError: it cannot be read, or is not what the family takes.
    """
    return _LOADERS[family](media)


def _picture(media: Media) -> Loaded:
    if isinstance(media, np.ndarray):
        frame = _rgb(media, ("height", "width"))
    else:
        data, at = content(media)
        frame = images.decode(data, at=at)
    return Loaded({wire.INPUT_MEDIA.name: frame[None, None]})


def _video(media: Media, *, choose: Choice) -> Loaded:
    if isinstance(media, np.ndarray):
        given = _rgb(media, ("frames", "height", "width"))
        places = choose(len(given))
        video = Video(given if len(places) == len(given) else given[list(places)], None)
    else:
        data, at = content(media)
        video = videos.read(data, at=at, choose=choose)
    return Loaded({wire.INPUT_MEDIA.name: video.frames[None]}, video.seconds)


def _sound(media: Media) -> Loaded:
    if isinstance(media, np.ndarray):
        if media.dtype != np.float32 or media.ndim != 1:
            raise _wrong(media, f"float32 of shape [samples], one channel at {wire.SAMPLE_RATE} Hz, or a Wave")
        signal = media
    elif isinstance(media, Wave):
        signal = waves.to_mono(media, wire.SAMPLE_RATE)
    else:
        data, at = content(media)
        signal = waves.to_mono(waves.decode(data, at=at), wire.SAMPLE_RATE)
    if not len(signal):
        raise _refused(_FIELD, "a sound without samples", "give at least one second")
    return Loaded(
        {
            wire.INPUT_SIGNAL.name: signal[None],
            wire.INPUT_SIGNAL_LENGTH.name: np.array([[len(signal)]], np.int32),
        }
    )


_LOADERS: Final[dict[Family, Callable[[Media], Loaded]]] = {
    Family.NEVA: _picture,
    Family.VILA: _picture,
    Family.VIDEO_NEVA: partial(_video, choose=videos.all_frames),
    Family.LITA: partial(_video, choose=partial(thin, most=MAX_FRAMES)),
    Family.VITA: partial(_video, choose=partial(thin, most=MAX_FRAMES)),
    Family.SALM: _sound,
}


def _rgb(media: NDArray[Any], shape: tuple[str, ...]) -> NDArray[np.uint8]:
    """Check an array of `shape` and three colours."""
    if media.dtype != np.uint8 or media.ndim != len(shape) + 1 or media.shape[-1] != _CHANNELS or 0 in media.shape:
        raise _wrong(media, f"uint8 of shape [{', '.join(shape)}, {_CHANNELS}], RGB")
    return media


def content(media: Place | bytes | Wave) -> tuple[bytes, str]:
    """Give the content of a file, and what to call it.

    Raises:
        ProductError: it cannot be read.
    """
    if isinstance(media, Wave):
        raise _refused(_FIELD, "a sound, where the model sees", "give a picture or a video")
    if isinstance(media, bytes):
        return media, _FIELD
    return fetch.read(media), "standard input" if media == fetch.STDIN else str(media)


def _wrong(media: NDArray[Any], wanted: str) -> ProductError:
    return _refused(_FIELD, f"an array of {media.dtype} and shape {list(media.shape)}", f"give {wanted}")


def _refused(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.REQUEST_REFUSED, at=at, problem=problem, remedy=remedy)
