"""CLIP's vision tower → transformers' `CLIPVisionModel`, from NeVA's archive or from a Hugging Face folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings.base import Ignore, Rename, Rule, Shape, per_layer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimodal_builder.towers import TowerConfig

ARCHIVE_PREFIX: Final = "model.embedding.word_embeddings.vision_encoder."
"""In an archive whose tower was trained; behind it come Hugging Face's names."""
PREFIX: Final = "vision_model."
"""In front of every canonical name."""

_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "out_proj")


def source_prefix(names: Iterable[str]) -> str:
    """Tell what stands in front of the tower's names in a folder: transformers 5 leaves `vision_model.` off."""
    return PREFIX if any(name.startswith(PREFIX) for name in names) else ""


def rules(prefix: str, tower: TowerConfig) -> tuple[Rule, ...]:
    """Rename every parameter, and know what else a CLIP checkpoint holds.

    Args:
        prefix: What stands in front of the names.
        tower: The sizes.
    """
    renames = (Rename(prefix + name, PREFIX + name) for name in _shapes(tower))
    return (
        *renames,
        Ignore(f"{prefix}embeddings.position_ids", why="0, 1, 2, …; stored by older transformers"),
        Ignore("text_model.*", why="the text half of CLIP"),
        Ignore("text_projection.weight", why="the text half of CLIP"),
        Ignore("visual_projection.weight", why="behind the layer that NeVA takes"),
        Ignore("logit_scale", why="of CLIP's contrastive training"),
    )


def parameters(tower: TowerConfig) -> dict[str, Shape]:
    """Names and shapes of `CLIPVisionModel`."""
    return {PREFIX + name: shape for name, shape in per_layer(_shapes(tower), tower.num_hidden_layers)}


def _shapes(tower: TowerConfig) -> dict[str, Shape]:
    width, inner = tower.hidden_size, tower.intermediate_size
    layer = "encoder.layers.{n}"
    shapes: dict[str, Shape] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, tower.num_channels, tower.patch_size, tower.patch_size),
        "embeddings.position_embedding.weight": (tower.patches + 1, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm", f"{layer}.layer_norm1", f"{layer}.layer_norm2"):  # CLIP's spelling
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for name in _PROJECTIONS:
        shapes |= {f"{layer}.self_attn.{name}.weight": (width, width), f"{layer}.self_attn.{name}.bias": (width,)}
    return shapes | {
        f"{layer}.mlp.fc1.weight": (inner, width),
        f"{layer}.mlp.fc1.bias": (inner,),
        f"{layer}.mlp.fc2.weight": (width, inner),
        f"{layer}.mlp.fc2.bias": (width,),
    }
