"""A tower's picture preprocessing: from `preprocessor_config.json` and `data.image_aspect_ratio`, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, Field

from multimodal_builder.checkpoints.config import CONFIG_NAME as MODEL_CONFIG
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


ASPECTS: Final = ("square", "pad", "resize", "keep")
"""`data.image_aspect_ratio`: the processor as it is; behind an expansion to a square; behind a resize to what the tower
takes (VILA); with the picture's proportions kept (NeMo's `process_image`)."""
WHOLE_NAME: Final = "processor_config.json"
"""Settings of a model's tokenizer and image processor together."""
_PICTURES: Final = "image_processor"
_KEPT_EDGE: Final = 224
"""NeMo's shortest edge for `keep`, whatever the tower; the other edge is twice that at most."""
_BICUBIC: Final = 3
"""What Pillow resizes with when it is not told, as VILA does not tell it; NeMo's `image_transform` tells it."""
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's."""


def processor_settings(folder: HuggingFaceFolder) -> tuple[dict[str, Any], str]:
    """Read the settings of a folder's image processor, which newer folders hold in those of the whole processor.

    Returns:
        The keys that have values, and what to call them in an error.

    Raises:
        ProductError: there are none, or they are damaged.
    """
    name = PREPROCESSOR_NAME
    if not (folder.path / name).is_file() and (folder.path / WHOLE_NAME).is_file():
        name = WHOLE_NAME
    at = f"{folder.path.name}/{name}"
    document: object = folder.json(name)
    if name == WHOLE_NAME and isinstance(document, dict):
        at, document = f"{at}: {_PICTURES}", document.get(_PICTURES)
    if not isinstance(document, dict):
        raise config_error(at, f"is missing, and there is no {PREPROCESSOR_NAME}", "copy the whole model folder there")
    return {key: value for key, value in document.items() if value is not None}, at


def read_preprocessing(
    folder: HuggingFaceFolder, tower: TowerConfig, aspect: str, *, key: str = f"{MODEL_CONFIG}: data.image_aspect_ratio"
) -> ImagePreprocessing:
    """Read `preprocessor_config.json`.

    Args:
        folder: The tower's.
        tower: Its sizes.
        aspect: `data.image_aspect_ratio`.
        key: What to call that in an error.

    Raises:
        ProductError: the processor does something that this version cannot repeat, or contradicts the tower.
    """
    settings, at = processor_settings(folder)
    processor = validated(_Processor, settings, at)
    siglip = isinstance(tower, SiglipConfig)
    squashes = siglip or (isinstance(processor.size, dict) and "shortest_edge" not in processor.size)
    edge = _edge(processor.size, at)
    crop = edge if siglip else _edge(processor.crop_size, at)
    steps = (processor.do_resize, siglip or processor.do_center_crop, processor.do_rescale, processor.do_normalize)
    if not all(steps) or edge < crop or (squashes and edge != crop):
        raise config_error(
            at,
            "leaves out a resize, a crop, a rescale or a normalisation, or resizes to another size than it crops to",
            REMEDY,
        )
    if crop != tower.image_size:
        raise config_error(
            f"{at}: {'size' if siglip else 'crop_size'}",
            f"pictures of {crop} pixels for a tower that takes {tower.image_size}",
            REMEDY,
        )
    plain = ImagePreprocessing(
        resize=FrameResize.SQUASH if squashes else FrameResize.SHORTEST_EDGE_CROP,
        shortest_edge=edge,
        image_size=crop,
        resample=processor.resample,
        rescale=processor.rescale_factor,
        mean=processor.image_mean,
        std=processor.image_std,
    )
    return plain.model_copy(update=_before(plain, tower, aspect, key))


def _before(plain: ImagePreprocessing, tower: TowerConfig, aspect: str, at: str) -> dict[str, object]:
    """Say what `data.image_aspect_ratio` changes in a processor.

    Raises:
        ProductError: a value that NeMo and VILA do not have, or that this tower could not have been trained with.
    """
    match aspect:
        case "square":
            return {}
        case "pad":
            return {"resize": FrameResize.PAD}
        case "resize" if plain.shortest_edge == plain.image_size:
            return {"resize": FrameResize.SQUASH, "resample": _BICUBIC}
        case "keep" if plain.resize is FrameResize.SHORTEST_EDGE_CROP and plain.image_size == _KEPT_EDGE:
            spare = tower.patch_size - 1 - plain.image_size % tower.patch_size
            return {"resize": FrameResize.KEEP, "shortest_edge": _KEPT_EDGE, "spare": spare}
        case "resize" | "keep":
            how = f"{plain.resize}, {plain.shortest_edge} to {plain.image_size} pixels"
            raise config_error(
                at, f"is {aspect!r}, but the processor's is {how}", "correct it: NeMo could not have trained this"
            )
        case _:
            raise config_error(
                at, f"{aspect!r} is not implemented", f"use a checkpoint with one of: {', '.join(ASPECTS)}"
            )


def nemo_preprocessing(tower: TowerConfig, aspect: str) -> ImagePreprocessing:
    """Give what NeMo 1 does for a tower of its own: `image_transform` for evaluation, by torchvision's arithmetic.

    Raises:
        ProductError: NeMo's `process_image` takes nothing but `square` for such a tower.
    """
    if aspect != "square":
        raise config_error(
            f"{MODEL_CONFIG}: data.image_aspect_ratio",
            f"is {aspect!r}, but a tower of NeMo's own takes 'square' alone",
            "correct it: NeMo could not have trained this",
        )
    return clip_preprocessing(tower).model_copy(update={"resize": FrameResize.SHORTEST_EDGE_CROP_ROUNDED})


def clip_preprocessing(tower: TowerConfig) -> ImagePreprocessing:
    """Give what the processors of OpenAI's and LLaVA's repositories do, which NeMo 2 trains with."""
    return ImagePreprocessing(
        resize=FrameResize.SHORTEST_EDGE_CROP,
        shortest_edge=tower.image_size,
        image_size=tower.image_size,
        resample=_BICUBIC,
        rescale=1 / 255,
        mean=_CLIP_MEAN,
        std=_CLIP_STD,
    )


def canonical_preprocessor(tower: TowerConfig, how: ImagePreprocessing) -> dict[str, Any]:
    """Give `vision/preprocessor_config.json`; what stands before the processor, as an expansion, is the recipe's."""
    square = {"height": how.image_size, "width": how.image_size}
    if isinstance(tower, SiglipConfig):
        sizes: dict[str, Any] = {"image_processor_type": "SiglipImageProcessor", "size": square}
    else:
        sizes = {
            "image_processor_type": "CLIPImageProcessor",
            "size": square if how.resize is FrameResize.SQUASH else {"shortest_edge": how.shortest_edge},
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
