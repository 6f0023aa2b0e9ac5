"""A vision tower's configuration and preprocessing, from its Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, PREPROCESSOR_NAME, find_folder
from multimodal_recipes.recipe import FrameResize, ImagePreprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_builder.checkpoints.config import ModelConfig
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder

Count = Annotated[int, Field(ge=1, le=1_000_000)]

CLIP_TYPES: Final = ("clip", "clip_vision_model")
"""`model_type` of a whole CLIP, whose tower is in `vision_config`, and of a tower alone."""


_Model = TypeVar("_Model", bound=BaseModel)


class TowerConfig(BaseModel):
    """`config.json` of a `CLIPVisionModel`; absent keys have transformers' defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    num_channels: Count = 3
    image_size: Count = 224
    patch_size: Count = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: Count = 512

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class Tower:
    """A tower's folder, read."""

    folder: HuggingFaceFolder
    config: TowerConfig
    preprocessing: ImagePreprocessing

    def canonical_config(self) -> dict[str, Any]:
        """Give `vision/config.json`."""
        return {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **self.config.model_dump()}

    def canonical_preprocessor(self) -> dict[str, Any]:
        """Give `vision/preprocessor_config.json`; the expansion to a square, where there is one, is the recipe's."""
        how = self.preprocessing
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": how.shortest_edge},
            "resample": how.resample,
            "do_center_crop": True,
            "crop_size": {"height": how.image_size, "width": how.image_size},
            "do_rescale": True,
            "rescale_factor": how.rescale,
            "do_normalize": True,
            "image_mean": list(how.mean),
            "image_std": list(how.std),
        }


def find_tower(config: ModelConfig, checkpoint: Path) -> Tower:
    """Find and read the folder of a checkpoint's tower, wherever the tower's weights lie.

    Raises:
        ProductError: there is none, or it is not one of CLIP's.
    """
    key = "mm_cfg.vision_encoder.from_pretrained"
    folder = find_folder(config.mm_cfg.vision_encoder.from_pretrained, checkpoint, key=key)
    tower = read_tower(folder)
    return Tower(folder, tower, read_preprocessing(folder, tower, config.data.image_aspect_ratio))


def read_tower(folder: HuggingFaceFolder) -> TowerConfig:
    """Read `config.json`.

    Raises:
        ProductError: it is no CLIP's, or lacks what is needed.
    """
    at = f"{folder.path.name}/{CONFIG_NAME}"
    document = folder.json(CONFIG_NAME)
    kind = document.get("model_type")
    if kind not in CLIP_TYPES:
        raise config_error(
            f"{at}: model_type", f"{kind!r} is no CLIP tower", f"this version takes {' and '.join(CLIP_TYPES)}"
        )
    return _validated(TowerConfig, document.get("vision_config", {}) if kind == "clip" else document, at)


class _Processor(BaseModel):
    """`preprocessor_config.json` of a CLIP image processor; sizes are numbers in old files and mappings in new ones."""

    do_resize: bool = True
    size: int | dict[str, int] = 224
    resample: Annotated[int, Field(ge=0, le=5)] = 3
    do_center_crop: bool = True
    crop_size: int | dict[str, int] = 224
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


ASPECTS: Final = {"square": FrameResize.SHORTEST_EDGE_CROP, "pad": FrameResize.PAD}
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
    document = folder.json(PREPROCESSOR_NAME)
    processor = _validated(_Processor, document, at)
    crop, edge = _edge(processor.crop_size, at), _edge(processor.size, at)
    steps = (processor.do_resize, processor.do_center_crop, processor.do_rescale, processor.do_normalize)
    if not all(steps) or edge < crop:
        raise config_error(
            at,
            "leaves out a resize, a crop, a rescale or a normalisation, or crops more than it resizes to",
            "use the preprocessor_config.json that belongs to the CLIP tower",
        )
    if crop != tower.image_size:
        raise config_error(
            f"{at}: crop_size",
            f"pictures of {crop} pixels for a tower that takes {tower.image_size}",
            f"use the {PREPROCESSOR_NAME} that belongs to the tower",
        )
    if aspect not in ASPECTS:
        raise config_error(
            "model_config.yaml: data.image_aspect_ratio",
            f"{aspect!r} is not implemented",
            f"use a checkpoint with one of: {', '.join(ASPECTS)}",
        )
    return ImagePreprocessing(
        resize=ASPECTS[aspect],
        shortest_edge=edge,
        image_size=crop,
        resample=processor.resample,
        rescale=processor.rescale_factor,
        mean=processor.image_mean,
        std=processor.image_std,
    )


def _edge(size: int | dict[str, int], at: str) -> int:
    """Read a size, whose edges must be the same."""
    edges = {size} if isinstance(size, int) else set(size.values())
    if len(edges) != 1 or min(edges) < 1:
        raise config_error(at, f"a size of {size}, which is no square", "use the file that belongs to the CLIP tower")
    return edges.pop()


def _validated(model: type[_Model], document: dict[str, Any], at: str) -> _Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise config_error(f"{at}: {key}", first["msg"], "use the file that belongs to the CLIP tower") from error
