"""Our preprocessing against the Hugging Face processors, on non-square coloured pictures, scaled up and down.

The processors are those that work with PIL and numpy; ours must give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from multimodal_api.errors import ProductError
from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
from multimodal_builder.preprocessor import read_preprocessing
from multimodal_builder.tower_config import ClipConfig, SiglipConfig, TowerConfig
from multimodal_recipes.images import preprocess
from multimodal_recipes.recipe import FrameResize, ImagePreprocessing

if TYPE_CHECKING:
    from pathlib import Path

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
    resize: FrameResize, edge: int, size: int, mean: tuple[float, ...], std: tuple[float, ...], resample: int = 3
) -> ImagePreprocessing:
    return ImagePreprocessing(
        resize=resize, shortest_edge=edge, image_size=size, resample=resample, rescale=1 / 255, mean=mean, std=std
    )


def written(folder: Path, processor: Any, tower: type[TowerConfig], size: int, aspect: str) -> ImagePreprocessing:
    """The recipe that the builder makes of the files that transformers wrote."""
    processor.save_pretrained(folder)
    return read_preprocessing(HuggingFaceFolder(folder), tower(image_size=size, patch_size=14), aspect)


def pixels(processor: Any, content: Any, **options: Any) -> NDArray[np.float32]:
    return np.asarray(processor(images=content, return_tensors="np", **options)["pixel_values"])


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


BILINEAR = 2


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("resample", [0, BILINEAR, 3, 1])
def test_the_filter_is_the_processors(height: int, width: int, resample: int) -> None:
    theirs = SiglipImageProcessorPil(size={"height": 56, "width": 56}, resample=resample)
    half = (0.5, 0.5, 0.5)
    ours = preprocess(picture(height, width)[None], recipe(FrameResize.SQUASH, 56, 56, half, half, resample), at="x")
    assert np.array_equal(ours, pixels(theirs, picture(height, width), input_data_format="channels_last"))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_padded_picture_of_siglip_is_padded_with_grey(tmp_path: Path, height: int, width: int) -> None:
    theirs = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    edge = max(height, width)
    square = Image.new("RGB", (edge, edge), (127, 127, 127))  # int(0.5 * 255)
    square.paste(Image.fromarray(picture(height, width)), ((edge - width) // 2, (edge - height) // 2))
    how = written(tmp_path, theirs, SiglipConfig, 56, "pad")
    assert np.array_equal(preprocess(picture(height, width)[None], how, at="x"), pixels(theirs, square))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vila_resizes_before_the_processor(tmp_path: Path, height: int, width: int, kind: str) -> None:
    """By Pillow's own filter, bicubic, whatever the processor's; which then has nothing left to resize."""
    square = {"height": 56, "width": 56}
    theirs: Any
    if kind == "clip":
        theirs = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=square, resample=BILINEAR)
    else:
        theirs = SiglipImageProcessorPil(size=square, resample=BILINEAR)
    how = written(tmp_path, theirs, ClipConfig if kind == "clip" else SiglipConfig, 56, "resize")
    resized = Image.fromarray(picture(height, width)).resize((56, 56))
    assert np.array_equal(preprocess(picture(height, width)[None], how, at="x"), pixels(theirs, resized))


KEPT = [(40, 40), (500, 510), (510, 500), (224, 236)]
LOST = [(224, 240), (240, 224), (300, 700), (100, 400), (33, 500)]


def kept(height: int, width: int) -> tuple[CLIPImageProcessorPil, NDArray[np.float32]]:
    """NeMo's `process_image` for `keep`: shortest edge int(min(448 / aspect, 224)), no crop."""
    theirs = CLIPImageProcessorPil()
    edge = int(min(448 / (max(height, width) / min(height, width)), 224))
    content = Image.fromarray(picture(height, width))
    return theirs, pixels(theirs, content, do_center_crop=False, size={"shortest_edge": edge})


@pytest.mark.parametrize(("height", "width"), KEPT)
def test_kept_proportions_as_far_as_the_towers_patches_reach(tmp_path: Path, height: int, width: int) -> None:
    theirs, expected = kept(height, width)
    assert [edge // 14 for edge in expected.shape[2:]] == [16, 16]
    how = written(tmp_path, theirs, ClipConfig, 224, "keep")
    assert np.array_equal(preprocess(picture(height, width)[None], how, at="x"), expected[:, :, :224, :224])


@pytest.mark.parametrize(("height", "width"), LOST)
def test_kept_proportions_that_the_tower_has_no_positions_for(tmp_path: Path, height: int, width: int) -> None:
    theirs, expected = kept(height, width)
    assert [edge // 14 for edge in expected.shape[2:]] != [16, 16]
    how = written(tmp_path, theirs, ClipConfig, 224, "keep")
    with pytest.raises(ProductError, match=f"resized to {expected.shape[2]} by {expected.shape[3]}"):
        preprocess(picture(height, width)[None], how, at="x")


def test_a_clip_processor_with_height_and_width_squashes(tmp_path: Path) -> None:
    square = {"height": 56, "width": 56}
    theirs = CLIPImageProcessorPil(size=square, crop_size=square)
    how = written(tmp_path, theirs, ClipConfig, 56, "square")
    assert np.array_equal(preprocess(picture(48, 96)[None], how, at="x"), pixels(theirs, picture(48, 96)))
