"""What one of transformers' classes requires of NeMo's configuration; the conditions that several share."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_builder.checkpoints.config import LanguageConfig


class Requirement(NamedTuple):
    """What one key of the configuration must be."""

    key: str
    holds: Callable[[LanguageConfig], bool]
    needs: str
    """The values that fit, for people."""

    def value(self, config: LanguageConfig) -> object:
        """Give the key's value."""
        return attrgetter(self.key)(config)


def one_of(key: str, allowed: tuple[object, ...]) -> Requirement:
    """Require one of some values."""
    value = attrgetter(key)
    return Requirement(key, lambda config: value(config) in allowed, " or ".join(map(_spelled, allowed)))


def _spelled(value: object) -> str:
    """Write a value as it stands in a configuration."""
    return value if isinstance(value, str) else json.dumps(value)


ROPE: Final = one_of("position_embedding_type", ("rope",))
LEARNED: Final = one_of("position_embedding_type", ("learned_absolute",))
WHOLE_HEADS: Final = one_of("rotary_percentage", (1.0,))
EVERYTHING: Final = Requirement("window_size", lambda config: config.window is None, "null")
"""Attention looks back to the beginning."""
RMSNORM: Final = one_of("normalization", ("rmsnorm",))
LAYERNORM: Final = one_of("normalization", ("layernorm", "layernorm1p", "low_precision_layernorm"))
SWIGLU: Final = (one_of("activation", ("swiglu", "fast-swiglu")), one_of("openai_gelu", (False,)))
UNGATED: Final = one_of("activation", ("gelu", "squared-relu"))
NO_BIAS: Final = one_of("bias", (False,))
BIAS: Final = one_of("bias", (True,))
DENSE: Final = one_of("num_moe_experts", (None, 0))
EXPERTS: Final = Requirement("num_moe_experts", lambda config: bool(config.num_moe_experts), "a number of experts")
UNSCALED: Final = one_of("apply_embedding_scaling", (None, False))
SEQUENTIAL: Final = one_of("mcore_customization_config.parallel_attention", (False,))
"""The feed-forward block reads what the attention wrote."""
USUAL_HEADS: Final = Requirement(
    "kv_channels",
    lambda config: config.num_attention_heads * config.head_size == config.hidden_size,
    "hidden_size / num_attention_heads",
)
EVEN_HEADS: Final = Requirement(
    "num_attention_heads",
    lambda config: config.hidden_size % config.num_attention_heads == 0,
    "a divisor of hidden_size",
)
