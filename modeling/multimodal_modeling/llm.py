"""The language model of a canonical model: transformers' own, fed with embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

# Importing the one model's module costs a third of what transformers' package-level names do.
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from multimodal_modeling.kv import KvPool, KvShape
from multimodal_modeling.pretrained import load_pretrained
from multimodal_modeling.rows import NAME as ROWS
from multimodal_modeling.rows import Rows
from multimodal_modeling.threads import Threads, mean_elements
from multimodal_recipes.recipe import LLM_DIR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from multimodal_modeling.kv import SequenceCache


class LanguageModel:
    """A decoder with its embedding table and its head."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()
        # Falcon's class alone, of those that we convert to, has an attention of its own that cannot be told anything.
        self._takes_rows = bool(model._supports_attention_backend)  # noqa: SLF001 -- there is no public word for it
        if self._takes_rows:
            model.set_attn_implementation(ROWS)
            model.set_experts_implementation(ROWS)
        self._mean_elements = mean_elements(*(one for one in model.parameters() if one is not self._embedding.weight))

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

    @torch.inference_mode()
    def new_pool(self, positions: int) -> KvPool:
        """Allocate key/value memory for a number of positions."""
        return KvPool(self._kv_shapes(), positions, dtype=self._model.dtype, device=self._model.device)

    @torch.inference_mode()
    def kv_bytes(self) -> int:
        """Give the size of one position's keys and values."""
        return sum(2 * shape.heads * shape.size for shape in self._kv_shapes()) * self._model.dtype.itemsize

    def _kv_shapes(self) -> tuple[KvShape, ...]:
        """Look at what one position leaves: configurations have many names for these numbers."""
        cache = self.new_cache()
        self.logits(self.embed(torch.tensor([[0]])), cache)
        keys = [cast("Tensor", cast("Any", layer).keys) for layer in cache.layers]
        return tuple(KvShape(layer.shape[1], layer.shape[3]) for layer in keys)

    def prefill(self, embeddings: Tensor, cache: SequenceCache) -> Tensor:
        """Take positions of one sequence into its cache and score what follows: [new, hidden] → [vocabulary rows]."""
        scores = self.logits(embeddings[None], cache, last=1)[0, -1]
        cache.length += len(embeddings)
        return scores

    def decode(self, ids: Sequence[int], pool: KvPool, caches: Sequence[SequenceCache], *, rows: int) -> Tensor:
        """Give each of some sequences one token.

        Args:
            ids: One for each sequence.
            pool: Where the caches are.
            caches: Theirs, extended in place.
            rows: Of every pass, at least the number of sequences. A result depends on this number, and on nothing of
                the other sequences.

        Returns:
            [sequences, vocabulary rows].
        """
        if not self._takes_rows:
            embedded = self.embed(torch.tensor(ids))[:, None]
            return torch.stack([self.prefill(one, cache) for one, cache in zip(embedded, caches, strict=True)])
        idle = [0] * (rows - len(ids))
        positions = torch.tensor([cache.length for cache in caches] + idle, device=self._model.device)
        together = Rows(pool, caches)
        with together.attending(), Threads() as threads:
            threads.share(elements=self._mean_elements, rows=rows)
            output = self._model(
                inputs_embeds=self.embed(torch.tensor([*ids, *idle]))[:, None],
                position_ids=positions[:, None],
                past_key_values=together,
                use_cache=True,
                logits_to_keep=1,
            )
        for cache in caches:
            cache.length += 1
        scores: Tensor = output.logits[: len(ids), -1]
        return scores

    def logits(self, embeddings: Tensor, cache: Cache, *, last: int = 0) -> Tensor:
        """Take new positions into the cache and score the vocabulary behind them.

        Args:
            embeddings: [batch, new, hidden], the positions behind those that the cache holds.
            cache: Extended in place.
            last: How many of the new positions to score, counted from the end; 0 means all.

        Returns:
            [batch, last or new, rows]: padding rows of the vocabulary included.
        """
        with Threads() as threads:
            threads.share(elements=self._mean_elements, rows=embeddings.shape[0] * embeddings.shape[1])
            output = self._model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=last)
        scores: Tensor = output.logits
        return scores
