"""A canonical model, loaded: recipe, media encoder and language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from pydantic import ValidationError

from multimodal_modeling.audio import AudioEncoder
from multimodal_modeling.llm import LanguageModel
from multimodal_modeling.pretrained import corrupt
from multimodal_modeling.splice import splice
from multimodal_modeling.vision import MediaEncoder
from multimodal_recipes.recipe import RECIPE_NAME, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor


class Encoder(Protocol):
    """What makes rows of prompt embeddings of a medium."""

    @property
    def takes_any_length(self) -> bool:
        """Whether `encode_together` takes items of different lengths."""

    def encode(self, media: Tensor, /) -> Tensor:
        """Encode items of one shape: [items, …] → [items, rows, hidden]."""

    def encode_together(self, items: Sequence[Tensor], /) -> Sequence[Tensor]:
        """Encode items, [...] each: [rows, hidden] each, as if it were alone."""

    def arrange(self, features: Tensor, /) -> Tensor:
        """Put the features of one medium's items, [items, rows, hidden], in the order of the prompt: [rows, hidden]."""


@dataclass(frozen=True, slots=True)
class MultimodalModel:
    """Everything that one worker runs."""

    recipe: Recipe
    media: Encoder
    llm: LanguageModel

    @classmethod
    def load(cls, model_dir: Path, *, dtype: torch.dtype, device: torch.device) -> MultimodalModel:
        """Load all components of a canonical model.

        Raises:
            ProductError: a file is missing or contradicts another.
        """
        recipe = read_recipe(model_dir)
        return cls(
            recipe=recipe,
            media=_load_encoder(model_dir, recipe, dtype=dtype, device=device),
            llm=LanguageModel.load(model_dir, dtype=dtype, device=device),
        )

    @torch.inference_mode()
    def prompt_embeddings(self, ids: Sequence[int], media_at: Sequence[int], media: Tensor) -> Tensor:
        """Embed a prompt.

        Args:
            ids: Token ids, with any valid id at the media positions.
            media_at: Positions of the media rows.
            media: [media_tokens, hidden], from the projector.

        Returns:
            [tokens, hidden].
        """
        at = torch.tensor(media_at, dtype=torch.long)  # of no positions, it would be float
        return splice(self.llm.embed(torch.tensor(ids)), self.llm.scale_media(media), at)


def _load_encoder(model_dir: Path, recipe: Recipe, *, dtype: torch.dtype, device: torch.device) -> Encoder:
    if recipe.vision is not None:
        return MediaEncoder.load(model_dir, recipe.vision, dtype=dtype, device=device)
    return AudioEncoder.load(model_dir, device=device)


def read_recipe(model_dir: Path) -> Recipe:
    """Read `recipe.json`.

    Raises:
        ProductError: it is absent or broken.
    """
    path = model_dir / RECIPE_NAME
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise corrupt(str(path), "the file is missing") from None
    except ValidationError as error:
        raise corrupt(str(path), str(error)) from error
