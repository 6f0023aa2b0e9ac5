"""Videos: from an encoded file to RGB frames."""

from __future__ import annotations

import io
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import av
import numpy as np
from av.error import FFmpegError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes import images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    Choice = Callable[[int], Sequence[int]]
    """Which frames are wanted, given how many there are; places in order, some perhaps more than once."""

MAX_FRAMES: Final = 2**15
"""Of a video, whether they are wanted or not, since most have to be decoded: 18 minutes at 30 frames per second."""

MAX_SECONDS: Final = 3600
"""Of a video, as its header tells."""

MAX_BYTES: Final = 2**31
"""Of all wanted frames as RGB: 345 frames of 1920 by 1080."""

THREADS: Final = 4
"""Of one decoder; each holds frames of its own."""

CONTAINERS: Final = ((4, b"ftyp", "mp4"), (0, b"\x1aE\xdf\xa3", "matroska"), (8, b"AVI ", "avi"))
"""Where a file says what it is, what it says, and FFmpeg's name for that. FFmpeg is never left to guess: among what it
would recognise are playlists, which make it read other files and addresses."""

CODECS: Final = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "ffv1")
"""What may be decoded; FFmpeg knows hundreds, and each is code that untrusted bytes can reach."""

ANIMATIONS: Final = ("GIF", "WEBP", "PNG")
"""Pillow's part."""

_CHANNELS: Final = 3
_AGAIN: Final = "copy it again from its source, or convert it anew"


class Video(NamedTuple):
    """A decoded video."""

    frames: NDArray[np.uint8]
    """[frames, height, width, 3], RGB: those that were wanted."""
    seconds: float | None
    """From the beginning of its first frame to the end of its last, wanted or not; more than 0. None where the file
    does not tell."""


def all_frames(total: int) -> range:
    """Want every frame."""
    return range(total)


def decode(data: bytes, *, at: str, choose: Choice = all_frames) -> NDArray[np.uint8]:
    """Decode the frames of a video that are wanted: `read` for those who need no duration.

    Returns:
        [frames, height, width, 3].

    Raises:
        ProductError: as `read` does.
    """
    return read(data, at=at, choose=choose).frames


def read(data: bytes, *, at: str, choose: Choice = all_frames, most: int = MAX_BYTES) -> Video:
    """Decode the frames of a video that are wanted, and tell how long it is.

    Args:
        data: Content of an MP4, WebM, MKV or AVI file, or of an animated GIF, WebP or PNG.
        at: What to call it in an error.
        choose: Which frames are wanted. Called before anything is decoded; what it raises is let through.
        most: Bytes of all wanted frames as RGB that there is room for.

    Returns:
        The frames at full resolution. What was recorded turned is upright, as NeMo's training and client see it through
        decord.

    Raises:
        ProductError: not a video, of another codec than `CODECS`, damaged, or larger than `images.MAX_PIXELS`,
            `MAX_FRAMES`, `MAX_SECONDS` or `most`. What headers tell is refused before anything is decoded.
    """
    kind = next((name for start, mark, name in CONTAINERS if data.startswith(mark, start)), None)
    if kind is None:
        return _decode_animation(data, choose, most, at=at)
    try:
        return _decode_container(data, kind, choose, most, at=at)
    except FFmpegError as error:
        raise _refused(at, f"the video is damaged: {error.strerror}", _AGAIN) from None


def _decode_container(data: bytes, kind: str, choose: Choice, most: int, *, at: str) -> Video:
    """Decode once, or, where not every packet is a frame, once more with the number of frames that was found."""
    total = _packets(data, kind, at=at)
    video, found = _take(data, kind, choose(total), most, at=at)
    if found == total:
        return video
    del video
    return _take(data, kind, choose(found), most, at=at)[0]


def _packets(data: bytes, kind: str, *, at: str) -> int:
    """Check what can be known without decoding, and count the packets."""
    with _open(data, kind, at=at) as (container, stream):
        images.check_size(stream.height, stream.width, at=at)
        seconds = (container.duration or 0) / av.time_base
        if seconds > MAX_SECONDS:
            raise _refused(at, f"a video of {seconds:.0f} seconds", f"cut it to at most {MAX_SECONDS} seconds")
        _check_total(stream.frames, at=at)
        total = 0
        for packet in container.demux(stream):
            total += packet.size > 0
            _check_total(total, at=at)
    if total == 0:
        raise _refused(at, "a video without frames", "record it again")
    return total


def _take(data: bytes, kind: str, wanted: Sequence[int], most: int, *, at: str) -> tuple[Video, int]:
    """Decode all frames; give the video with those that are wanted and there, and how many there are."""
    with _open(data, kind, at=at) as (container, stream):
        size = (stream.height, stream.width)
        taken = _room(len(wanted), size, most, at=at)
        places = _places(wanted)
        found = turns = 0
        times: list[float] = []
        last = 0.0
        for frame in container.decode(stream):
            _check_total(found + 1, at=at)
            if (frame.height, frame.width) != size:
                raise _refused(
                    at, f"frames of {frame.height} by {frame.width} among others of {size[0]} by {size[1]}", _AGAIN
                )
            if found in places:
                taken[places[found]] = frame.to_ndarray(format="rgb24")
            if found == 0:
                turns = _quarter_turns(frame.rotation)
            if frame.time is not None:
                times.append(frame.time)
                last = _length(frame)
            found += 1
    if found == 0:
        raise _refused(at, "a video of which no frame can be decoded", _AGAIN)
    return Video(np.ascontiguousarray(np.rot90(taken, turns, axes=(1, 2))), _seconds(times, last)), found


def _length(frame: VideoFrame) -> float:
    """Give the seconds that one frame is shown; 0 where the file does not tell."""
    return max(0.0, float(frame.duration * frame.time_base)) if frame.duration and frame.time_base else 0.0


def _seconds(times: Sequence[float], last: float) -> float | None:
    """Give a video's length.

    Args:
        times: When its frames begin.
        last: How long its last frame is shown; 0 is as long as the others on average.
    """
    if not times:
        return None
    between = max(times) - min(times)
    return between + (last or between / max(1, len(times) - 1)) or None


def _quarter_turns(degrees: int) -> int:
    """Give how often 90 degrees, counter-clockwise, make a frame upright; an odd angle is left as it is."""
    turns, rest = divmod(degrees, 90)
    return 0 if rest else turns % 4


@contextmanager
def _open(data: bytes, kind: str, *, at: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first video."""
    limit = {"max_pixels": str(images.MAX_PIXELS)}  # holds for the frames that FFmpeg decodes to find the size, too
    with av.open(io.BytesIO(data), mode="r", format=kind, options=limit, metadata_errors="replace") as container:
        if not container.streams.video:
            raise _refused(
                at, "a file without a video in it", f"give a video of one of these codecs: {', '.join(CODECS)}"
            )
        stream = container.streams.video[0]
        decoder = cast("VideoCodecContext | None", stream.codec_context)  # None where FFmpeg knows none
        codec = decoder.codec.canonical_name if decoder is not None else "unknown to FFmpeg"
        if codec not in CODECS:
            raise _refused(at, f"a video of the codec {codec}", f"convert it to one of {', '.join(CODECS)}")
        if not stream.height or not stream.width:
            raise _refused(
                at, f"a video whose frames have no size, or more than {images.MAX_PIXELS} pixels", "scale it down"
            )
        stream.codec_context.options = limit
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        yield container, stream


def _decode_animation(data: bytes, choose: Choice, most: int, *, at: str) -> Video:
    """Decode with Pillow, whose animations lead from each frame to the next."""
    with images.opened(data, ANIMATIONS, at=at) as animation:
        first = int(
            animation.info.get("default_image") is True
        )  # a picture of a PNG, for programs that know no animations
        total = getattr(animation, "n_frames", 1) - first
        _check_total(total, at=at)
        wanted = choose(total)
        taken = _room(len(wanted), (animation.height, animation.width), most, at=at)
        places = _places(wanted)
        milliseconds = 0.0
        for place in range(total):
            animation.seek(first + place)
            animation.load()  # WebP tells a frame's time no earlier
            shown = animation.info.get("duration", 0)
            milliseconds += (
                shown if isinstance(shown, int | float) else 0
            )  # a text of this name, in a PNG without times
            if place in places:
                taken[places[place]] = animation.convert("RGB")
    return Video(taken, milliseconds / 1000 or None)


def _places(wanted: Sequence[int]) -> dict[int, list[int]]:
    """Give, for each wanted frame, where it goes."""
    places: dict[int, list[int]] = {}
    for row, place in enumerate(wanted):
        places.setdefault(place, []).append(row)
    return places


def _room(count: int, size: tuple[int, int], most: int, *, at: str) -> NDArray[np.uint8]:
    """Make room for frames, [count, height, width, 3]."""
    shape = (count, *size, _CHANNELS)
    needed = math.prod(shape)
    if needed > most:
        raise _refused(
            at,
            f"{count} frames of {size[0]} by {size[1]} take {needed} bytes, where there is room for {most}",
            "scale the video down, or cut it",
        )
    return np.empty(shape, np.uint8)


def _check_total(total: int, *, at: str) -> None:
    if total > MAX_FRAMES:
        raise _refused(at, f"a video of {total} frames or more", f"cut it to at most {MAX_FRAMES} frames")


def _refused(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.REQUEST_REFUSED, at=at, problem=problem, remedy=remedy)
