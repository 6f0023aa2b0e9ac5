"""Videos for tests, encoded by the libraries themselves."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Encoding(NamedTuple):
    """How FFmpeg writes a video."""

    container: str
    codec: str
    pixels: str
    options: dict[str, str]


LOSSLESS = {
    "mp4": Encoding("mp4", "libx264rgb", "rgb24", {"crf": "0"}),
    "webm": Encoding("webm", "libvpx-vp9", "gbrp", {"lossless": "1"}),
    "mkv": Encoding("matroska", "ffv1", "bgr0", {}),
    "avi": Encoding("avi", "ffv1", "bgr0", {}),
}
"""Ways that keep every bit of RGB."""


def noise(frames: int, height: int = 34, width: int = 48) -> NDArray[np.uint8]:
    """[frames, height, width, 3]: no two frames are alike."""
    return np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def smooth(frames: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """[frames, height, width, 3]: slow waves of all colours, which lossy codecs keep well."""
    t, y, x, channel = np.ogrid[:frames, :height, :width, :3]
    return np.asarray(128 + 90 * np.sin(0.2 * t + y / 17 + x / 23 + 2 * channel)).astype(np.uint8)


def encode(frames: NDArray[np.uint8], how: Encoding, *, rate: int = 10) -> bytes:
    """Write a video."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=how.container) as container:
        track: Any = container.add_stream(how.codec, rate=rate, options=how.options)
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = how.pixels
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(track.encode(picture.reformat(format=how.pixels)))
        container.mux(track.encode())
    return stream.getvalue()


def animate(frames: NDArray[np.uint8], kind: str, **options: object) -> bytes:
    """Write an animation."""
    stream = io.BytesIO()
    first, *rest = map(Image.fromarray, frames)
    first.save(stream, kind, save_all=True, append_images=rest, **options)
    return stream.getvalue()
