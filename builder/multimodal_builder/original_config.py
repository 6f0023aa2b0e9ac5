"""`config.json` as the code of LLaVA and of VILA writes it: the keys that both have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.tower_config import validated
from multimodal_recipes.recipe import FeatureSelect

if TYPE_CHECKING:
    from collections.abc import Mapping

ASPECT_KEY: Final = "image_aspect_ratio"
_ASPECTS: Final = {None: "square", "square": "square", "pad": "pad", "resize": "resize"}
"""What becomes of a picture in front of the processor; absent is nothing."""


class OriginalConfig(BaseModel):
    """Defaults are those of LLaVA's and VILA's code."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    select_layer: int = Field(default=-2, alias="mm_vision_select_layer")
    select_feature: FeatureSelect = Field(default=FeatureSelect.PATCH, alias="mm_vision_select_feature")
    start_end: bool = Field(default=False, alias="mm_use_im_start_end")
    image_aspect_ratio: str | None = None
    patch_merge: str | None = Field(default=None, alias="mm_patch_merge_type")
    s2: bool | None = None
    dynamic_s2: bool | None = None
    image_encoder: Any = None
    """Of NVILA, whose prompts and order of tokens are others."""

    @property
    def aspect(self) -> str:
        """What `data.image_aspect_ratio` would be."""
        return _ASPECTS[self.image_aspect_ratio]

    @property
    def dropped(self) -> int:
        """Tokens left out in front: for `patch` the first, whether the tower has a class token or not."""
        return 1 if self.select_feature is FeatureSelect.PATCH else 0


def read_original_config(document: Mapping[str, Any], at: str) -> OriginalConfig:
    """Check the keys.

    Raises:
        ProductError: one has a value that this version does not take.
    """
    config = validated(OriginalConfig, document, at)
    pairs: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        (ASPECT_KEY, config.image_aspect_ratio, tuple(_ASPECTS)),
        ("mm_patch_merge_type", config.patch_merge, (None, "flat")),
        ("s2", config.s2, (None, False)),
        ("dynamic_s2", config.dynamic_s2, (None, False)),
        ("image_encoder", config.image_encoder, (None,)),
    )
    for key, found, allowed in pairs:
        if found not in allowed:
            raise config_error(
                f"{at}: {key}",
                f"is {str(found)[:60]!r}, but this version takes {' or '.join(map(repr, allowed))}",
                "use another model",
            )
    return config
