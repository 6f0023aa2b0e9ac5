"""The language model of a canonical model: transformers' own, fed with embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

# Importing the one model's module costs a third of what transformers' package-level names do.
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from multimodal_modeling.pretrained import load_pretrained
from multimodal_recipes.recipe import LLM_DIR

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


class LanguageModel:
    """A decoder with its embedding table and its head."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()

    @classmethod
    def load(cls, model_dir: Path, *, dtype: torch.dtype, device: torch.device) -> LanguageModel:
        """Load `llm/`.

        Raises:
            ProductError: weights and configuration disagree.
        """
        return cls(
            load_pretrained(AutoModelForCausalLM.from_pretrained, model_dir / LLM_DIR, dtype=dtype, device=device)
        )

    @property
    def hidden_size(self) -> int:
        """Width of an embedding."""
        return int(self._model.config.get_text_config().hidden_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up token ids: [tokens] → [tokens, hidden]."""
        embedded: Tensor = self._embedding(ids.to(self._model.device))
        return embedded

    def scale_media(self, media: Tensor) -> Tensor:
        """Bring media rows to the scale of what `embed` gives.

        Gemma multiplies embeddings by the square root of their width, which transformers does as it looks them up.
        NeMo trains with media in their places before that, so that their rows are multiplied too.

        Args:
            media: [media_tokens, hidden], from the projector.

        Returns:
            The same shape and type.
        """
        scale: Tensor | None = getattr(self._embedding, "embed_scale", None)
        return media if scale is None else media * scale.to(media)

    def new_cache(self) -> Cache:
        """Make an empty key/value cache."""
        return DynamicCache(config=self._model.config)

    def logits(self, embeddings: Tensor, cache: Cache, *, last: int = 0) -> Tensor:
        """Take new positions into the cache and score the vocabulary behind them.

        Args:
            embeddings: [batch, new, hidden], the positions behind those that the cache holds.
            cache: Extended in place.
            last: How many of the new positions to score, counted from the end; 0 means all.

        Returns:
            [batch, last or new, rows]: padding rows of the vocabulary included.
        """
        output = self._model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=last)
        scores: Tensor = output.logits
        return scores
