"""Weights of the tiny NeVA's archives as torch reads them, to be put together in other ways."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch

from support.archives import CKPT

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.archives import Archive

State = dict[str, torch.Tensor]


def saved(value: object) -> bytes:
    packed = io.BytesIO()
    torch.save(value, packed)
    return packed.getvalue()


def state_of(classic: Archive) -> State:
    """Read `model_weights.ckpt`."""
    state: State = torch.load(io.BytesIO(classic.members[CKPT]))
    return state


def keep_tensors(classic: Archive, wanted: Callable[[str], bool]) -> Archive:
    """Drop the other tensors of `model_weights.ckpt`."""
    classic.members[CKPT] = saved({name: tensor for name, tensor in state_of(classic).items() if wanted(name)})
    return classic
