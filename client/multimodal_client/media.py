"""Pictures from where people have them: a file, a URL, bytes, an array."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.images import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = str | Path | bytes | NDArray[np.uint8]

FETCH_SECONDS: Final = 5.0
MAX_FILE_BYTES: Final = 2**28
_PICTURE_DIMENSIONS: Final = 3


def load(picture: Picture) -> NDArray[np.uint8]:
    """Give a picture as the wire takes it.

    Args:
        picture: path or http(s) URL of a file, content of a file, or [height, width, 3] RGB.

    Returns:
        [1, height, width, 3] RGB, at full resolution: the server resizes.

    Raises:
        ProductError: it cannot be read, or is no picture.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != _PICTURE_DIMENSIONS:
            raise ProductError(
                Reason.REQUEST_REFUSED,
                at="input_media",
                problem=f"an array of {picture.dtype} and shape {list(picture.shape)}",
                remedy="give uint8 of shape [height, width, 3], RGB",
            )
        return picture[None]
    if isinstance(picture, bytes):
        return decode(picture, at="input_media")[None]
    return decode(_read(picture), at=str(picture))[None]


def _read(place: str | Path) -> bytes:
    try:
        if isinstance(place, str) and place.startswith(("http://", "https://")):
            with urllib.request.urlopen(place, timeout=FETCH_SECONDS) as response:  # noqa: S310 -- the scheme is checked above
                data: bytes = response.read(MAX_FILE_BYTES + 1)
        else:
            with Path(place).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=str(place),
            problem=f"cannot be read: {error}",
            remedy="give the path or the http(s) address of a picture",
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=str(place),
            problem=f"is larger than {MAX_FILE_BYTES} bytes",
            remedy="scale the picture down",
        )
    return data
