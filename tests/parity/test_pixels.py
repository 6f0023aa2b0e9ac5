"""Our preprocessing against the Hugging Face processors, on non-square coloured pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from multimodal_recipes.images import preprocess
from multimodal_recipes.recipe import FrameResize, ImagePreprocessing

pytestmark = pytest.mark.parity

SIZES = [(40, 60), (60, 40), (336, 336), (480, 641), (641, 480), (33, 500), (224, 225), (1, 7), (37, 37)]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Colour gradients with noise: edges, all channels different, no symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = np.stack([rows * 255 / height, columns * 255 / width, (rows + 2 * columns) % 256], axis=-1)
    noise = np.random.default_rng(height * width).integers(-40, 40, channels.shape)
    return np.clip(channels + noise, 0, 255).astype(np.uint8)


def recipe(
    resize: FrameResize, edge: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> ImagePreprocessing:
    return ImagePreprocessing(
        resize=resize, shortest_edge=edge, image_size=size, resample=3, rescale=1 / 255, mean=mean, std=std
    )


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("edge", "size"), [(336, 336), (224, 224), (48, 32)])
def test_clip(height: int, width: int, edge: int, size: int) -> None:
    theirs = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": size, "width": size})
    expected = np.asarray(
        theirs(images=picture(height, width), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    )
    ours = preprocess(
        picture(height, width)[None],
        recipe(FrameResize.SHORTEST_EDGE_CROP, edge, size, CLIP_MEAN, CLIP_STD),
        at="x",
    )
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_siglip(height: int, width: int) -> None:
    half = (0.5, 0.5, 0.5)
    theirs = SiglipImageProcessorPil(size={"height": 56, "width": 56}, image_mean=half, image_std=half, resample=3)
    expected = np.asarray(
        theirs(images=picture(height, width), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    )
    ours = preprocess(picture(height, width)[None], recipe(FrameResize.SQUASH, 56, 56, half, half), at="x")
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_padding_is_that_of_llava(height: int, width: int) -> None:
    """LLaVA's `expand2square`: paste on a square of int(mean * 255), offset (size - short) // 2, then CLIP."""
    edge = max(height, width)
    square = Image.new("RGB", (edge, edge), tuple(int(value * 255) for value in CLIP_MEAN))
    square.paste(Image.fromarray(picture(height, width)), ((edge - width) // 2, (edge - height) // 2))
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    expected = np.asarray(theirs(images=square, return_tensors="np")["pixel_values"])
    ours = preprocess(picture(height, width)[None], recipe(FrameResize.PAD, 48, 48, CLIP_MEAN, CLIP_STD), at="x")
    assert np.array_equal(ours, expected)
