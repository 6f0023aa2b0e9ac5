from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.images import FORMATS, MAX_PIXELS, check_size, decode, preprocess
from multimodal_recipes.recipe import FrameResize, ImagePreprocessing


def how(resize: FrameResize = FrameResize.SHORTEST_EDGE_CROP, edge: int = 8, size: int = 8) -> ImagePreprocessing:
    return ImagePreprocessing(
        resize=resize,
        shortest_edge=edge,
        image_size=size,
        resample=3,
        rescale=1 / 255,
        mean=(0.5, 0.25, 0.75),
        std=(0.5, 0.25, 0.125),
    )


def picture(height: int = 6, width: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(frame: NDArray[np.uint8], kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, kind, **options)
    return stream.getvalue()


def claiming(height: int, width: int) -> bytes:
    """A PNG whose header says more than its few bytes hold."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IDAT\x35\xaf\x06\x1e"


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_lossless_formats_come_back_as_they_were(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(decode(encoded(picture(), kind, **options), at="x"), picture())


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture()).convert("L" if mode == "I;16" else mode).save(stream, "TIFF")
    assert decode(stream.getvalue(), at="x").shape == (6, 10, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["0 bytes that are no picture", *FORMATS]),
        (b"hello", ["5 bytes that are no picture"]),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", ["no picture"]),
        (encoded(picture(200, 200), "PNG")[:2000], ["damaged", "again"]),
        (encoded(picture(200, 200), "JPEG")[:700], ["damaged"]),
        (claiming(100_000, 100_000), ["pixels", str(MAX_PIXELS)]),
        (claiming(MAX_PIXELS // 1000 + 1, 1000), [str(MAX_PIXELS), "scale it down"]),
    ],
    ids=["empty", "text", "another format", "truncated png", "truncated jpeg", "bomb", "too large"],
)
def test_what_is_no_picture_is_refused_with_its_name(data: bytes, words: list[str]) -> None:
    with pytest.raises(ProductError) as caught:
        decode(data, at="the picture")
    failure = caught.value.failure
    assert failure.reason is Reason.REQUEST_REFUSED
    assert failure.at == "the picture"
    assert all(word in str(failure) for word in words), str(failure)


@given(st.binary(max_size=200))
def test_no_bytes_end_in_another_error(data: bytes) -> None:
    with pytest.raises(ProductError):
        decode(data, at="x")


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0), (-1, 4), (MAX_PIXELS, 2)])
def test_sizes_out_of_bounds(height: int, width: int) -> None:
    with pytest.raises(ProductError):
        check_size(height, width, at="x")


@pytest.mark.parametrize("resize", [how for how in FrameResize if how is not FrameResize.KEEP])
def test_pixels_are_normalised_levels(resize: FrameResize) -> None:
    frame = np.empty((1, 5, 9, 3), np.uint8)
    frame[:] = (255, 0, 51)
    pixels = preprocess(frame, how(resize), at="x")
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    centre = pixels[0, :, 4, 4]
    assert np.allclose(centre, [(1 - 0.5) / 0.5, (0 - 0.25) / 0.25, (0.2 - 0.75) / 0.125], atol=1e-6)


def test_the_crop_is_the_middle() -> None:
    frame = np.zeros((1, 8, 24, 3), np.uint8)
    frame[:, :, 8:16] = 255
    pixels = preprocess(frame, how(), at="x")
    assert np.all(pixels == pixels[:, :, :1, :1])
    assert pixels[0, 0, 0, 0] == 1


@pytest.mark.parametrize(("width", "left"), [(8, 0), (9, 0), (10, 1), (11, 2), (13, 2), (15, 4)])
def test_nemos_own_crop_rounds_half_a_pixel_to_the_even_number(width: int, left: int) -> None:
    """torchvision's `center_crop`: int(round((width - size) / 2.0)); the processors of Hugging Face round down."""
    frame = picture(8, width)
    rounded, plain = FrameResize.SHORTEST_EDGE_CROP_ROUNDED, FrameResize.SHORTEST_EDGE_CROP
    expected = preprocess(frame[None, :, left : left + 8], how(), at="x")
    assert np.array_equal(preprocess(frame[None], how(rounded), at="x"), expected)
    assert np.array_equal(preprocess(frame[None], how(plain), at="x"), expected) == (left == (width - 8) // 2)


@pytest.mark.parametrize(("height", "width", "fits"), [(8, 8, True), (16, 19, True), (16, 20, False), (8, 40, False)])
def test_kept_proportions_fit_as_far_as_no_patch_is_added(height: int, width: int, *, fits: bool) -> None:
    keep = how(FrameResize.KEEP).model_copy(update={"spare": 1})
    frame = np.full((1, height, width, 3), 255, np.uint8)
    if fits:
        assert preprocess(frame, keep, at="x").shape == (1, 3, 8, 8)
    else:
        with pytest.raises(ProductError, match="proportions kept") as caught:
            preprocess(frame, keep, at="x")
        assert caught.value.failure.reason is Reason.REQUEST_REFUSED


def test_padding_has_the_mean_colour_and_centres_the_content() -> None:
    frame = np.full((1, 4, 8, 3), 255, np.uint8)
    pixels = preprocess(frame, how(FrameResize.PAD), at="x")
    top, middle = pixels[0, :, 0, 4], pixels[0, :, 4, 4]
    assert np.allclose(top, 0, atol=0.05)  # int(mean * 255) is up to one level below the mean
    assert np.allclose(middle, [1, 3, 2])
    assert np.array_equal(pixels[0, :, 0], pixels[0, :, 1])


@pytest.mark.parametrize("shape", [(1, 2**21, 1, 3), (1, 1, 2**21, 3)])
def test_a_resize_that_would_explode_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProductError, match="shortest edge"):
        preprocess(np.zeros(shape, np.uint8), how(edge=336, size=336), at="x")


def test_a_square_beyond_the_limit_is_refused_before_it_is_made() -> None:
    with pytest.raises(ProductError, match="padded"):
        preprocess(np.zeros((1, 2**14, 16, 3), np.uint8), how(FrameResize.PAD), at="x")


def test_a_crop_larger_than_the_edge_is_no_recipe() -> None:
    with pytest.raises(ValidationError, match="does not fit"):
        how(edge=8, size=9)
