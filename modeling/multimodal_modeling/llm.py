"""Loading the language model of a canonical model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_modeling.llama import Llama, LlamaConfig
from multimodal_modeling.weights import load_module, read_config
from multimodal_recipes.recipe import LLM_DIR

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class _Kind(BaseModel):
    model_type: str


def load_llm(model_dir: Path, *, dtype: torch.dtype, device: torch.device) -> Llama:
    """Load `llm/`.

    Raises:
        ProductError: its `model_type` has no decoder here, or weights and configuration disagree.
    """
    folder = model_dir / LLM_DIR
    kind = read_config(folder, _Kind).model_type
    if kind != "llama":
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at=str(folder),
            problem=f"the torch backend has no decoder for model_type {kind!r}",
            remedy="use a Llama checkpoint, or another backend",
        )
    config = read_config(folder, LlamaConfig)
    return load_module(folder, lambda: Llama(config), dtype=dtype, device=device)
