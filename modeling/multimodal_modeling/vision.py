"""From pixels to rows of prompt embeddings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import torch
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from multimodal_modeling.pretrained import corrupt, load_pretrained
from multimodal_modeling.projector import Projector
from multimodal_modeling.threads import Threads, mean_elements
from multimodal_modeling.video import arrange
from multimodal_recipes.recipe import VISION_DIR, FeatureSelect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from multimodal_recipes.recipe import VisionRecipe

TOWERS: Final = {
    "CLIPVisionModel": CLIPVisionModel.from_pretrained,
    "SiglipVisionModel": SiglipVisionModel.from_pretrained,
}
"""By the class that `vision/config.json` names."""


class MediaEncoder:
    """A tower and a projector, loaded."""

    takes_any_length: Final = False

    def __init__(self, tower: PreTrainedModel, projector: Projector, recipe: VisionRecipe) -> None:
        self._tower = tower
        self._projector = projector
        self._recipe = recipe
        self._mean_elements = mean_elements(*tower.parameters())

    @classmethod
    def load(cls, model_dir: Path, recipe: VisionRecipe, *, dtype: torch.dtype, device: torch.device) -> MediaEncoder:
        """Read `vision/` and `projector/` of a canonical model.

        Raises:
            ProductError: a file is missing or contradicts another.
        """
        folder = model_dir / VISION_DIR
        tower = load_pretrained(_loader(folder), folder, dtype=dtype, device=device)
        return cls(tower, Projector.load(model_dir, dtype=dtype, device=device), recipe)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            pixels: [items, 3, size, size] float32, normalised as the recipe's preprocessing says; on any device.

        Returns:
            [items, tokens_per_image, hidden] in the encoder's dtype.
        """
        placed = pixels.to(device=self._tower.device, dtype=self._tower.dtype)
        items, _, height, width = pixels.shape
        patch = self._tower.config.patch_size
        with Threads() as threads:
            threads.share(elements=self._mean_elements, rows=items * (height // patch) * (width // patch))
            states = self._tower(pixel_values=placed, output_hidden_states=True).hidden_states
        features = states[self._recipe.select_layer]
        if self._recipe.select_feature is FeatureSelect.PATCH:
            features = features[:, self._recipe.class_token_length :]
        encoded: Tensor = self._projector(features)
        return encoded

    def encode_together(self, pictures: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Encode pictures of one shape, [3, size, size] each: [tokens_per_image, hidden] each."""
        return tuple(self.encode(torch.stack(list(pictures))))

    @torch.inference_mode()
    def arrange(self, features: Tensor) -> Tensor:
        """Make prompt rows of one medium's encoded frames.

        Args:
            features: [frames, tokens_per_image, hidden].

        Returns:
            [rows, hidden], in the order of the prompt.
        """
        return arrange(features, self._recipe.video)


def _loader(folder: Path) -> Callable[..., object]:
    """Find what loads a tower.

    Raises:
        ProductError: the configuration is missing or broken, or names no tower that this version runs.
    """
    path = folder / "config.json"
    try:
        (name,) = json.loads(path.read_bytes())["architectures"]
        return TOWERS[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise corrupt(str(path), f"names no tower of {', '.join(TOWERS)}: {error!r}") from error
