"""Pictures, videos and sounds from where people have them: a file, a URL, standard input, bytes, an array."""

from __future__ import annotations

import sys
import urllib.request
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_recipes import images, videos, waves
from multimodal_recipes.frames import thin
from multimodal_recipes.waves import Wave

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from typing import IO

    from numpy.typing import NDArray

    from multimodal_recipes.videos import Choice

    Place = str | Path
    Media = Place | bytes | NDArray[np.uint8] | NDArray[np.float32] | Wave
    Tensors = Mapping[str, NDArray[Any]]

FETCH_SECONDS: Final = 5.0
MAX_FILE_BYTES: Final = 2**28
MAX_FRAMES: Final = 256
"""Of a video for lita and vita; NeMo's client has the same number."""
STDIN: Final = "-"

_FIELD: Final = "input_media"
_CHANNELS: Final = 3


def load(media: Media, family: Family) -> Tensors:
    """Give a picture, video or sound as the wire takes it.

    Args:
        media: path or http(s) URL of a file, "-" for standard input, content of a file, or what is in one: a picture
            [height, width, 3] or a video [frames, height, width, 3] of uint8 RGB, a sound of `wire.SAMPLE_RATE`
            [samples] of float32, or one of another rate or of several channels as a `Wave`.
        family: of the model: neva and vila take a picture, salm a sound, the others a video.

    Returns:
        The tensors, by name, with the batch dimension. Pictures and videos have their full resolution: the server
        resizes. Of a video all frames, for lita and vita at most `MAX_FRAMES` of them, evenly spread. A sound is mixed
        and resampled here: NeMo's client sends it as it is, and its server then hears it at another speed.

    Raises:
        ProductError: it cannot be read, or is not what the family takes.
    """
    return _LOADERS[family](media)


def _picture(media: Media) -> Tensors:
    if isinstance(media, np.ndarray):
        frame = _rgb(media, ("height", "width"))
    else:
        data, at = _content(media)
        frame = images.decode(data, at=at)
    return {wire.INPUT_MEDIA.name: frame[None, None]}


def _video(media: Media, *, choose: Choice) -> Tensors:
    if isinstance(media, np.ndarray):
        given = _rgb(media, ("frames", "height", "width"))
        places = choose(len(given))
        frames = given if len(places) == len(given) else given[list(places)]
    else:
        data, at = _content(media)
        frames = videos.decode(data, at=at, choose=choose)
    return {wire.INPUT_MEDIA.name: frames[None]}


def _sound(media: Media) -> Tensors:
    if isinstance(media, np.ndarray):
        if media.dtype != np.float32 or media.ndim != 1:
            raise _wrong(media, f"float32 of shape [samples], one channel at {wire.SAMPLE_RATE} Hz, or a Wave")
        signal = media
    elif isinstance(media, Wave):
        signal = waves.to_mono(media, wire.SAMPLE_RATE)
    else:
        data, at = _content(media)
        signal = waves.to_mono(waves.decode(data, at=at), wire.SAMPLE_RATE)
    if not len(signal):
        raise _refused(_FIELD, "a sound without samples", "give at least one second")
    return {
        wire.INPUT_SIGNAL.name: signal[None],
        wire.INPUT_SIGNAL_LENGTH.name: np.array([[len(signal)]], np.int32),
    }


_LOADERS: Final[dict[Family, Callable[[Media], Tensors]]] = {
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


def _content(media: Place | bytes | Wave) -> tuple[bytes, str]:
    """Give the content of a file, and what to call it."""
    if isinstance(media, Wave):
        raise _refused(_FIELD, "a sound, where the model sees", "give a picture or a video")
    if isinstance(media, bytes):
        return media, _FIELD
    return _read(media), "standard input" if media == STDIN else str(media)


def _read(place: Place) -> bytes:
    try:
        with _open(place) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _refused(
            str(place),
            f"cannot be read: {error}",
            "give the path or the http(s) address of a file, or - for standard input",
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise _refused(str(place), f"is larger than {MAX_FILE_BYTES} bytes", "scale it down, or cut it")
    return data


def _open(place: Place) -> AbstractContextManager[IO[bytes]]:
    if place == STDIN:
        return nullcontext(sys.stdin.buffer)
    if isinstance(place, str) and place.startswith(("http://", "https://")):
        response: IO[bytes] = urllib.request.urlopen(place, timeout=FETCH_SECONDS)  # noqa: S310 -- the scheme is checked above
        return response
    return Path(place).open("rb")


def _wrong(media: NDArray[Any], wanted: str) -> ProductError:
    return _refused(_FIELD, f"an array of {media.dtype} and shape {list(media.shape)}", f"give {wanted}")


def _refused(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.REQUEST_REFUSED, at=at, problem=problem, remedy=remedy)
