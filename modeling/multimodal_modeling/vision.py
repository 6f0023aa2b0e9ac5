"""From pixels to rows of prompt embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from multimodal_modeling.clip import ClipConfig, ClipTower
from multimodal_modeling.projector import Projector
from multimodal_modeling.weights import load_module, read_config
from multimodal_recipes.recipe import PROJECTOR_DIR, VISION_DIR, FeatureSelect, ProjectorConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from multimodal_recipes.recipe import VisionRecipe


class MediaEncoder:
    """A tower and a projector, loaded."""

    def __init__(self, tower: ClipTower, projector: Projector, recipe: VisionRecipe) -> None:
        self._tower = tower
        self._projector = projector
        self._recipe = recipe

    @classmethod
    def load(cls, model_dir: Path, recipe: VisionRecipe, *, dtype: torch.dtype, device: torch.device) -> MediaEncoder:
        """Read `vision/` and `projector/` of a canonical model."""
        vision_config = read_config(model_dir / VISION_DIR, ClipConfig)
        projector_config = read_config(model_dir / PROJECTOR_DIR, ProjectorConfig)
        tower = load_module(model_dir / VISION_DIR, lambda: ClipTower(vision_config), dtype=dtype, device=device)
        projector = load_module(
            model_dir / PROJECTOR_DIR, lambda: Projector(projector_config), dtype=dtype, device=device
        )
        return cls(tower, projector, recipe)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            pixels: [items, 3, size, size] float32, normalised as the recipe's preprocessing says; on any device.

        Returns:
            [items, tokens_per_image, hidden] in the encoder's dtype.
        """
        weight = self._tower.vision_model.pre_layrnorm.weight
        features = self._tower(pixels.to(device=weight.device, dtype=weight.dtype), self._recipe.select_layer)
        if self._recipe.select_feature is FeatureSelect.PATCH:
            features = features[:, self._recipe.class_token_length :]
        encoded: Tensor = self._projector(features)
        return encoded
