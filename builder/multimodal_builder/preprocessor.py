"""A tower's picture preprocessing: from `preprocessor_config.json` and `data.image_aspect_ratio`, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, Field

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import PREPROCESSOR_NAME
from multimodal_builder.tower_config import REMEDY, SiglipConfig, TowerConfig, validated
from multimodal_recipes.recipe import FrameResize, ImagePreprocessing

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder

_Level = Annotated[float, Field(ge=0, le=1)]
_Spread = Annotated[float, Field(gt=0)]


class _Processor(BaseModel):
    """The keys of both image processors; sizes are numbers in old files and mappings in new ones."""

    do_resize: bool = True
    size: int | dict[str, int] = 224
    resample: Annotated[int, Field(ge=0, le=5)] = 3
    do_center_crop: bool = True
    """CLIP's alone."""
    crop_size: int | dict[str, int] = 224
    """CLIP's alone."""
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0)] = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[_Level, _Level, _Level]
    image_std: tuple[_Spread, _Spread, _Spread]


ASPECTS: Final = ("square", "pad")
"""`data.image_aspect_ratio`: the processor as it is, or behind an expansion to a square."""


def read_preprocessing(folder: HuggingFaceFolder, tower: TowerConfig, aspect: str) -> ImagePreprocessing:
    """Read `preprocessor_config.json`.

    Args:
        folder: The tower's.
        tower: Its sizes.
        aspect: `data.image_aspect_ratio`.

    Raises:
        ProductError: the processor does something that this version cannot repeat, or contradicts the tower.
    """
    at = f"{folder.path.name}/{PREPROCESSOR_NAME}"
    processor = validated(_Processor, folder.json(PREPROCESSOR_NAME), at)
    squashes = isinstance(tower, SiglipConfig)
    edge = _edge(processor.size, at)
    crop = edge if squashes else _edge(processor.crop_size, at)
    steps = (processor.do_resize, squashes or processor.do_center_crop, processor.do_rescale, processor.do_normalize)
    if not all(steps) or edge < crop:
        raise config_error(
            at,
            "leaves out a resize, a crop, a rescale or a normalisation, or crops more than it resizes to",
            REMEDY,
        )
    if crop != tower.image_size:
        raise config_error(
            f"{at}: {'size' if squashes else 'crop_size'}",
            f"pictures of {crop} pixels for a tower that takes {tower.image_size}",
            REMEDY,
        )
    if aspect not in ASPECTS:
        raise config_error(
            "model_config.yaml: data.image_aspect_ratio",
            f"{aspect!r} is not implemented",
            f"use a checkpoint with one of: {', '.join(ASPECTS)}",
        )
    plain = FrameResize.SQUASH if squashes else FrameResize.SHORTEST_EDGE_CROP
    return ImagePreprocessing(
        resize=FrameResize.PAD if aspect == "pad" else plain,
        shortest_edge=edge,
        image_size=crop,
        resample=processor.resample,
        rescale=processor.rescale_factor,
        mean=processor.image_mean,
        std=processor.image_std,
    )


def canonical_preprocessor(tower: TowerConfig, how: ImagePreprocessing) -> dict[str, Any]:
    """Give `vision/preprocessor_config.json`; what stands before the processor, as an expansion, is the recipe's."""
    square = {"height": how.image_size, "width": how.image_size}
    if isinstance(tower, SiglipConfig):
        sizes: dict[str, Any] = {"image_processor_type": "SiglipImageProcessor", "size": square}
    else:
        sizes = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": how.shortest_edge},
            "do_center_crop": True,
            "crop_size": square,
        }
    return {
        **sizes,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": how.resample,
        "do_rescale": True,
        "rescale_factor": how.rescale,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }


def _edge(size: int | dict[str, int], at: str) -> int:
    """Read a size, whose edges must be the same."""
    edges = {size} if isinstance(size, int) else set(size.values())
    if len(edges) != 1 or min(edges) < 1:
        raise config_error(at, f"a size of {size}, which is no square", REMEDY)
    return edges.pop()
