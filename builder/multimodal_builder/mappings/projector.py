"""NeVA's projector: names stay, the place in the embedding module goes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.mappings.base import Rename, Rule, Shape

if TYPE_CHECKING:
    from multimodal_recipes.recipe import ProjectorConfig

ARCHIVE_PREFIX: Final = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."
PREFIX: Final = "mm_projector."

_MLP: Final = re.compile(r"mlp([1-9][0-9]?)x_gelu")


def rules(config: ProjectorConfig) -> tuple[Rule, ...]:
    """Rename every parameter."""
    return tuple(Rename(ARCHIVE_PREFIX + name, PREFIX + name) for name in _shapes(config))


def parameters(config: ProjectorConfig) -> dict[str, Shape]:
    """Names and shapes."""
    return {PREFIX + name: shape for name, shape in _shapes(config).items()}


def _shapes(config: ProjectorConfig) -> dict[str, Shape]:
    """Every Linear has a bias; the activations between them take every second number.

    Raises:
        ProductError: a kind that this version does not convert.
    """
    if config.kind == "linear":
        return {"weight": (config.hidden_size, config.input_size), "bias": (config.hidden_size,)}
    match = _MLP.fullmatch(config.kind)
    if match is None:
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at="model_config.yaml: mm_cfg.mm_mlp_adapter_type",
            problem=f"projector {config.kind!r} is not implemented",
            remedy="use a checkpoint whose projector is linear or mlp<N>x_gelu",
        )
    shapes: dict[str, Shape] = {}
    for layer in range(int(match[1])):
        width = config.input_size if layer == 0 else config.hidden_size
        shapes |= {f"{2 * layer}.weight": (config.hidden_size, width), f"{2 * layer}.bias": (config.hidden_size,)}
    return shapes
