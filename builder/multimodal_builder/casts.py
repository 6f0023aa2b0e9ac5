"""Weights from one floating-point type to another, rounded to nearest even, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_api.engine import Dtype

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.tensors import Array

STORED: Final = {Dtype.FLOAT32: "F32", Dtype.FLOAT16: "F16", Dtype.BFLOAT16: "BF16"}
"""safetensors' names."""

_QUIET: Final = np.uint32(0x0040_0000)
"""The bit that makes a NaN quiet; set, so that rounding cannot turn a NaN into an infinity."""


def cast(array: Array, *, source: str, target: str) -> Array:
    """Convert values.

    Args:
        array: In the carrier type of `source`.
        source: safetensors' name of the type the values have.
        target: The same of the type they get.

    Returns:
        In the carrier type of `target`.
    """
    if source == target:
        return array
    wide = _widen(array, source)
    if target == "BF16":
        return _to_bfloat16(wide)
    return wide.astype(np.float16 if target == "F16" else np.float32)


def _widen(array: Array, source: str) -> Array:
    if source == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _to_bfloat16(wide: Array) -> Array:
    """Keep the upper half of each float32, rounded; the type has its exponent and seven bits of its fraction."""
    bits = np.ascontiguousarray(wide).view(np.uint32)
    odd = (bits >> 16) & 1
    rounded = np.where(np.isnan(wide), bits | _QUIET, bits + 0x7FFF + odd)
    return (rounded >> 16).astype(np.uint16)
