"""Distributed checkpoints: a folder whose `metadata.json` names the form of what lies in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.checkpoints.stacked import StackedSource
from multimodal_builder.checkpoints.torch_dist import TorchDistBoxes
from multimodal_builder.checkpoints.zarr import ZarrBoxes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from multimodal_builder.checkpoints.members import Members
    from multimodal_builder.checkpoints.stacked import BoxSource

FORMAT_NAME: Final = "metadata.json"
FORMS: Final[Mapping[tuple[str, int], Callable[[Members, str], BoxSource]]] = {
    ("torch_dist", 1): TorchDistBoxes,
    ("zarr", 1): ZarrBoxes,
}
"""By `sharded_backend` and its version."""


def open_distributed(members: Members, folder: str) -> StackedSource:
    """Read the index of a folder of weights.

    Raises:
        ProductError: it is damaged, unsafe, of another form, or places data outside its files.
    """
    member = members.open(f"{folder}/{FORMAT_NAME}")
    try:
        described = json.loads(member.read())
        found = (described["sharded_backend"], described["sharded_backend_version"])
        form = FORMS.get(found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable(
            member.at, f"not the description of a distributed checkpoint: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if form is None:
        raise unreadable(
            member.at,
            f"weights in the format {found[0]} version {found[1]}",
            f"save them with NeMo as one of: {', '.join(f'{name} version {version}' for name, version in FORMS)}",
        )
    return StackedSource(form(members, folder))
