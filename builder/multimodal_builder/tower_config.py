"""Sizes of a vision tower: `config.json` of transformers' CLIP and SigLIP, alone or as half of a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder

Count = Annotated[int, Field(ge=1, le=1_000_000)]

REMEDY: Final = "use the file that belongs to the model"

_Model = TypeVar("_Model", bound=BaseModel)


class TowerConfig(BaseModel):
    """What both kinds have; absent keys have transformers' defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    architecture: ClassVar[str]
    """Class in transformers."""
    model_type: ClassVar[str]
    """Its name in `config.json`."""
    class_tokens: ClassVar[int]
    """Tokens in front of the patches."""
    extra: ClassVar[Mapping[str, object]] = {}
    """Keys of `vision/config.json` whose value is always the same."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    num_channels: Count = 3
    image_size: Count = 224
    patch_size: Count
    hidden_act: str
    layer_norm_eps: float

    @property
    def patches(self) -> int:
        """Patches of a picture; pixels that fill no whole patch are left out."""
        return (self.image_size // self.patch_size) ** 2

    def canonical(self) -> dict[str, Any]:
        """Give `vision/config.json`."""
        head = {"architectures": [self.architecture], "model_type": self.model_type}
        return {**head, **self.model_dump(), **self.extra}


class ClipConfig(TowerConfig):
    """Of a `CLIPVisionModel`."""

    architecture: ClassVar[str] = "CLIPVisionModel"
    model_type: ClassVar[str] = "clip_vision_model"
    class_tokens: ClassVar[int] = 1

    patch_size: Count = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: Count = 512


class SiglipConfig(TowerConfig):
    """Of a `SiglipVisionModel`."""

    architecture: ClassVar[str] = "SiglipVisionModel"
    model_type: ClassVar[str] = "siglip_vision_model"
    class_tokens: ClassVar[int] = 0
    extra: ClassVar[Mapping[str, object]] = {"vision_use_head": False}  # pooling is behind the layers that NeVA takes

    patch_size: Count = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


TYPES: Final[Mapping[str, tuple[type[TowerConfig], bool]]] = {
    "clip_vision_model": (ClipConfig, False),
    "clip": (ClipConfig, True),
    "siglip_vision_model": (SiglipConfig, False),
    "siglip": (SiglipConfig, True),
}
"""By `model_type`: the tower's kind, and whether the file is a whole model's with the tower in `vision_config`."""


def read_tower_config(folder: HuggingFaceFolder) -> TowerConfig:
    """Read `config.json`.

    Raises:
        ProductError: it is no such tower's, or a size in it is wrong.
    """
    at = f"{folder.path.name}/{CONFIG_NAME}"
    document = folder.json(CONFIG_NAME)
    name = document.get("model_type")
    if not isinstance(name, str) or name not in TYPES:
        raise config_error(
            f"{at}: model_type", f"{name!r} is no vision tower", f"this version takes {', '.join(TYPES)}"
        )
    kind, whole = TYPES[name]
    return validated(kind, document.get("vision_config", {}) if whole else document, at)


def validated(model: type[_Model], document: object, at: str) -> _Model:
    """Check a document; the first wrong key is named.

    Raises:
        ProductError: a key is missing or has a wrong value.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise config_error(f"{at}: {key}", first["msg"], REMEDY) from error
