"""NeMo's own CLIP towers: their archives, what a configuration says of one, and whether transformers has it."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.config import ClipModelConfig, ClipSection, config_error
from multimodal_builder.checkpoints.errors import not_found
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, candidates
from multimodal_builder.checkpoints.nemo import open_checkpoint
from multimodal_builder.tower_config import ClipConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_builder.checkpoints.checkpoint import Checkpoint

FROM_HF: Final = "mm_cfg.vision_encoder.from_hf"

ACTIVATIONS: Final = {"gelu": "gelu", "approx-gelu": "quick_gelu"}
"""transformers' names; NeMo's `approx-gelu` is x * sigmoid(1.702 x)."""
TANH_GELU: Final = "gelu_pytorch_tanh"
"""What `openai_gelu` makes of `gelu`, and Megatron's fused bias and activation too."""


class Requirement(NamedTuple):
    """What one key must be, so that transformers' `CLIPVisionModel` can hold the tower."""

    key: str
    holds: Callable[[ClipSection], bool]
    needs: str


REQUIREMENTS: Final = (
    Requirement("class_token_length", lambda c: c.class_token_length == 1, "1"),
    Requirement("preprocess_layernorm", lambda c: c.preprocess_layernorm, "True"),
    Requirement("img_w", lambda c: c.img_w == c.img_h, "that of img_h"),
    Requirement("patch_dim", lambda c: c.img_h % c.patch_dim == 0, "a divisor of img_h"),
    Requirement("kv_channels", lambda c: c.kv_channels in {None, c.hidden_size / c.num_attention_heads}, "null"),
    Requirement("normalization", lambda c: c.normalization == "layernorm", "'layernorm'"),
    Requirement("activation", lambda c: c.activation in ACTIVATIONS, " or ".join(map(repr, ACTIVATIONS))),
    Requirement("layerscale", lambda c: not c.layerscale, "False"),
)


def clip_config(section: ClipSection, *, at: str) -> ClipConfig:
    """Give the sizes as transformers has them.

    Args:
        section: NeMo's.
        at: What to call it in an error.

    Raises:
        ProductError: transformers' CLIP cannot hold such a tower; all keys are named.
    """
    broken = [requirement for requirement in REQUIREMENTS if not requirement.holds(section)]
    if broken:
        named = (f"{key} is {attrgetter(key)(section)!r}, not {needs}" for key, _, needs in broken)
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at=f"{at}.{broken[0].key}",
            problem=f"transformers' CLIPVisionModel cannot hold the tower: {'; '.join(named)}",
            remedy="use a checkpoint with a Hugging Face tower",
        )
    tanh = section.activation == "gelu" and (section.openai_gelu or section.bias_activation_fusion)
    return ClipConfig(
        hidden_size=section.hidden_size,
        intermediate_size=section.ffn_hidden_size,
        num_hidden_layers=section.num_layers,
        num_attention_heads=section.num_attention_heads,
        num_channels=section.num_channels,
        image_size=section.img_h,
        patch_size=section.patch_dim,
        hidden_act=TANH_GELU if tanh else ACTIVATIONS[section.activation],
        layer_norm_eps=section.layernorm_epsilon,
    )


def open_clip(named: str, checkpoint: Path, *, key: str) -> Checkpoint[ClipModelConfig]:
    """Open the archive of a CLIP that a NeVA configuration names.

    Args:
        named: The value.
        checkpoint: NeVA's.
        key: The configuration key, for errors.

    Raises:
        ProductError: there is none, it is a Hugging Face model's folder, or no readable CLIP.
    """
    for candidate in candidates(named, checkpoint):
        if (candidate / CONFIG_NAME).is_file():
            raise config_error(
                f"{checkpoint.name}: {FROM_HF}",
                f"is False, but {candidate.name!r} is the folder of a Hugging Face model",
                "set it to True in model_config.yaml, or put the archive of NeMo's CLIP there",
            )
        if candidate.exists():
            return open_checkpoint(candidate, ClipModelConfig)
    raise not_found(
        f"{checkpoint.name}: {key}",
        f"{named!r} is no archive on the volume",
        f"put the CLIP's archive beside the checkpoint, as {Path(named).name!r} in {str(checkpoint.parent)!r}",
    )
