"""NeVA's projector: names stay, the place in the embedding module goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.mappings.base import Rename, Rule, Shape
from multimodal_recipes.recipe import JOINING_KINDS, PROJECTOR_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_recipes.recipe import ProjectorConfig

ARCHIVE_PREFIX: Final = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."
PREFIX: Final = "mm_projector."


def rules(config: ProjectorConfig, before: str = ARCHIVE_PREFIX) -> tuple[Rule, ...]:
    """Rename every parameter; `before` stands in front of its name in the checkpoint."""
    return tuple(Rename(before + name, PREFIX + name) for name in _shapes(config))


def parameters(config: ProjectorConfig) -> dict[str, Shape]:
    """Names and shapes."""
    return {PREFIX + name: shape for name, shape in _shapes(config).items()}


def _shapes(config: ProjectorConfig) -> dict[str, Shape]:
    """Every Linear has a bias; steps without parameters take a number too.

    Raises:
        ProductError: a kind that NeMo does not have.
    """
    width, hidden = config.input_size, config.hidden_size
    match config.kind, config.mlp_depth:
        case "identity", _:
            return {}
        case "linear", _:
            return dict(_affine("", (hidden, width)))
        case kind, _ if kind in JOINING_KINDS:  # 0 joins four tokens, 3 is the activation
            layers = {"1.": (4 * width,), "2.": (hidden, 4 * width), "4.": (hidden, hidden)}
        case _, int(depth):
            layers = {f"{2 * index}.": (hidden, hidden if index else width) for index in range(depth)}
        case kind, _:
            raise ProductError(
                Reason.UNSUPPORTED_MODEL,
                at="model_config.yaml: mm_cfg.mm_mlp_adapter_type",
                problem=f"{kind!r} is no projector",
                remedy=f"use a checkpoint whose projector is {PROJECTOR_KINDS}",
            )
    return {name: shape for prefix, size in layers.items() for name, shape in _affine(prefix, size)}


def _affine(prefix: str, weight: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}weight", weight
    yield f"{prefix}bias", weight[:1]
