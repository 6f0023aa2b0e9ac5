"""Pictures: from an encoded file to RGB frames, and from RGB frames to the pixels that a vision tower takes.

The arithmetic is that of the PIL and numpy image processors of Hugging Face transformers, to the bit (a test compares).
"""

from __future__ import annotations

import io
import struct
import warnings
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.recipe import FrameResize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from multimodal_recipes.recipe import ImagePreprocessing

MAX_PIXELS: Final = 2**25
"""Width times height of one picture, before and after a resize: 100 MB of RGB, beyond which a request is refused."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What may be decoded; Pillow knows more, and each is code that untrusted bytes can reach."""

_DAMAGED: Final = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)
"""What Pillow's decoders raise on damaged files."""
_CHANNELS: Final = 3
_LEVELS: Final = 256


def decode(data: bytes, *, at: str) -> NDArray[np.uint8]:
    """Decode one picture.

    Args:
        data: content of a picture file.
        at: what to call it in an error.

    Returns:
        [height, width, 3] RGB at full resolution. The first frame of an animation; orientation marks are not applied,
        as in NeMo's client.

    Raises:
        ProductError: not a picture, of another format than `FORMATS`, truncated, or larger than `MAX_PIXELS`. The size
            is read from the header, so that a picture that is too large is never decoded.
    """
    with opened(data, FORMATS, at=at) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


@contextmanager
def opened(data: bytes, formats: tuple[str, ...], *, at: str) -> Iterator[Image.Image]:
    """Open a file whose header is that of a picture or an animation of these formats, no larger than `MAX_PIXELS`.

    Args:
        data: content of the file.
        formats: Pillow's names.
        at: what to call it in an error.

    Raises:
        ProductError: the header is not such a one; or Pillow fails inside the context, on damaged data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                check_size(picture.height, picture.width, at=at)
                yield picture
    except UnidentifiedImageError:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem=f"{len(data)} bytes that are no picture",
            remedy=f"give a picture of one of these formats: {', '.join(formats)}",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem=str(error),
            remedy=f"give a picture of at most {MAX_PIXELS} pixels",
        ) from None
    except _DAMAGED as error:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem=f"the picture is damaged: {error}",
            remedy="copy it again from its source, or save it anew",
        ) from None


def check_size(height: int, width: int, *, at: str) -> None:
    """Refuse a picture without pixels, and one beyond `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem=f"a picture of height {height} and width {width}",
            remedy="give a picture of at least 1 pixel in both directions",
        )
    if height * width > MAX_PIXELS:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem=f"a picture of {height} by {width} = {height * width} pixels",
            remedy=f"scale it down to at most {MAX_PIXELS} pixels",
        )


def preprocess(frames: NDArray[np.uint8], how: ImagePreprocessing, *, at: str) -> NDArray[np.float32]:
    """Make tower pixels of RGB frames.

    Args:
        frames: [frames, height, width, 3].
        how: the tower's preprocessing.
        at: what to call the frames in an error.

    Returns:
        [frames, 3, image_size, image_size], C-contiguous.

    Raises:
        ProductError: the size of the frames is refused by `check_size`, as they are or as the resize would make them.
    """
    check_size(frames.shape[1], frames.shape[2], at=at)
    table = _levels(how)
    pixels = np.empty((len(frames), _CHANNELS, how.image_size, how.image_size), np.float32)
    for index, frame in enumerate(frames):
        square = _square(frame, how, at=at)
        for channel in range(_CHANNELS):
            # Every level has its place: with the mode that looks for those that have none, numpy copies what it gives.
            np.take(table[channel], square[:, :, channel], out=pixels[index, channel], mode="clip")
    return pixels


@lru_cache
def _levels(how: ImagePreprocessing) -> NDArray[np.float32]:
    """Give the normalised value of each of the 256 levels of each channel, [3, 256].

    transformers rescales in float64, rounds to float32, then normalises in float32; a value depends on its level alone,
    so that a table gives the same bits.
    """
    rescaled = (np.arange(_LEVELS, dtype=np.float64) * how.rescale).astype(np.float32)
    mean = np.array(how.mean, dtype=np.float32)[:, None]
    std = np.array(how.std, dtype=np.float32)[:, None]
    levels = np.asarray((rescaled - mean) / std, dtype=np.float32)
    levels.flags.writeable = False  # all callers share it
    return levels


def _square(frame: NDArray[np.uint8], how: ImagePreprocessing, *, at: str) -> NDArray[np.uint8]:
    """Resize and crop one [height, width, 3] frame to [image_size, image_size, 3]."""
    if how.resize is FrameResize.SQUASH:
        return _resize(frame, how.image_size, how.image_size, how.resample)
    if how.resize is FrameResize.PAD:
        frame = _pad(frame, how, at=at)
    height, width = frame.shape[:2]
    short = min(height, width)
    shortest = how.shortest_edge
    if how.resize is FrameResize.KEEP:
        shortest = int(min(2 * shortest / (max(height, width) / short), shortest))
    new_height, new_width = (shortest * edge // short for edge in (height, width))
    check_size(new_height, new_width, at=f"{at} (shortest edge resized to {shortest})")
    if how.resize is FrameResize.KEEP:
        _check_kept(new_height, new_width, how, at=at)
        return _resize(frame, new_height, new_width, how.resample)[: how.image_size, : how.image_size]
    resized = _resize(frame, new_height, new_width, how.resample)
    top, left = (_margin(edge - how.image_size, how.resize) for edge in (new_height, new_width))
    return resized[top : top + how.image_size, left : left + how.image_size]


def _margin(spare: int, how: FrameResize) -> int:
    """Give the pixels that a centre crop leaves out in front, of all that it leaves out."""
    return round(spare / 2) if how is FrameResize.SHORTEST_EDGE_CROP_ROUNDED else spare // 2


def _check_kept(height: int, width: int, how: ImagePreprocessing, *, at: str) -> None:
    """Refuse a picture whose patches are not those of a square: the tower has no positions for them."""
    if not all(how.image_size <= edge <= how.image_size + how.spare for edge in (height, width)):
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem=f"resized to {height} by {width}, its proportions kept, for a tower that takes {how.image_size}",
            remedy="crop it to a square: this model was trained with image_aspect_ratio keep, on square pictures alone",
        )


def _resize(frame: NDArray[np.uint8], height: int, width: int, resample: int) -> NDArray[np.uint8]:
    if frame.shape[:2] == (height, width):
        return frame  # Pillow copies in this case, it does not filter
    filtered = Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), resample=Image.Resampling(resample))
    return np.asarray(filtered)


def _pad(frame: NDArray[np.uint8], how: ImagePreprocessing, *, at: str) -> NDArray[np.uint8]:
    """Centre the frame on a square of the mean colour, rounded down as LLaVA's `expand2square` does."""
    height, width = frame.shape[:2]
    edge = max(height, width)
    check_size(edge, edge, at=f"{at} (padded to a square)")
    background: Any = [int(value * (_LEVELS - 1)) for value in how.mean]
    square = np.empty((edge, edge, _CHANNELS), np.uint8)
    square[:] = background
    top, left = (edge - height) // 2, (edge - width) // 2
    square[top : top + height, left : left + width] = frame
    return square
