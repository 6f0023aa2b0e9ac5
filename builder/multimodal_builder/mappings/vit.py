"""Vision towers of transformers → `CLIPVisionModel` and `SiglipVisionModel`, from NeVA's archive or from a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.mappings.base import Ignore, Rename, Rule, Shape, per_layer
from multimodal_builder.tower_config import ClipConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimodal_builder.tower_config import TowerConfig

PREFIX: Final = "vision_model."
"""In front of every canonical name."""

_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
_OUTSIDE: Final = (
    Ignore("text_model.*", why="the text half"),
    Ignore("text_projection.weight", why="the text half of CLIP"),
    Ignore("visual_projection.weight", why="behind the layer that NeVA takes"),
    Ignore("logit_scale", why="of the contrastive training"),
    Ignore("logit_bias", why="of SigLIP's contrastive training"),
)
"""What whole models hold beside the tower."""


def rules(config: TowerConfig, names: Iterable[str], *, before: str) -> tuple[Rule, ...]:
    """Rename every parameter, and know what else a checkpoint of such a tower holds.

    Args:
        config: The sizes.
        names: The tensors there are: transformers 5 leaves `vision_model.` off where a tower is alone.
        before: What stands in front of all names.
    """
    prefix = before + (PREFIX if any(name.startswith(before + PREFIX) for name in names) else "")
    return (
        *(Rename(prefix + name, PREFIX + name) for name in _shapes(config)),
        Ignore(f"{prefix}embeddings.position_ids", why="0, 1, 2, …; stored by older transformers"),
        Ignore(f"{prefix}head.*", why="SigLIP's pooling, behind the layers that NeVA takes"),
        *_OUTSIDE,
    )


def parameters(config: TowerConfig) -> dict[str, Shape]:
    """Names and shapes of transformers' model."""
    return {PREFIX + name: shape for name, shape in per_layer(_shapes(config), config.num_hidden_layers)}


def _shapes(config: TowerConfig) -> dict[str, Shape]:
    width, inner = config.hidden_size, config.intermediate_size
    layer = "encoder.layers.{n}"
    shapes: dict[str, Shape] = {
        "embeddings.patch_embedding.weight": (width, config.num_channels, config.patch_size, config.patch_size),
        "embeddings.position_embedding.weight": (config.patches + config.class_tokens, width),
    }
    norms = ["post_layernorm", f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
    if isinstance(config, ClipConfig):
        shapes["embeddings.class_embedding"] = (width,)
        norms.append("pre_layrnorm")  # CLIP's spelling
    else:
        shapes["embeddings.patch_embedding.bias"] = (width,)
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for name in _PROJECTIONS:
        shapes |= {f"{layer}.self_attn.{name}.weight": (width, width), f"{layer}.self_attn.{name}.bias": (width,)}
    return shapes | {
        f"{layer}.mlp.fc1.weight": (inner, width),
        f"{layer}.mlp.fc1.bias": (inner,),
        f"{layer}.mlp.fc2.weight": (width, inner),
        f"{layer}.mlp.fc2.bias": (width,),
    }
