"""Writing the canonical model: one Hugging Face folder per component, streamed tensor by tensor."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from multimodal_builder.casts import STORED
from multimodal_builder.checkpoints.tensors import raw
from multimodal_builder.files import FileLog, sync_tree
from multimodal_builder.safetensors_writer import write_weights
from multimodal_recipes.recipe import PROJECTOR_DIR, RECIPE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from multimodal_api.engine import Dtype, EngineFile
    from multimodal_builder.checkpoints.tensors import Array
    from multimodal_builder.components import Component
    from multimodal_builder.plan import Plan

CONFIG_NAME: Final = "config.json"
TORCH_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's names of the types that weights have."""


class Converted(NamedTuple):
    """What a conversion wrote and read."""

    files: tuple[EngineFile, ...]
    """Paths from `root`."""
    checkpoint_sha256: str
    """Digest of everything that was read: settings, then each tensor's name and bytes in the order of reading."""


def write_canonical(
    plan: Plan, folder: Path, *, root: Path, dtype: Dtype | None, on_bytes: Callable[[int], None]
) -> Converted:
    """Convert.

    Args:
        plan: From headers.
        folder: Where the model goes; must not exist.
        root: What paths in the result start from.
        dtype: Type of all weights as they are written; None keeps each as it is.
        on_bytes: Told of the bytes of each tensor that was read.
    """
    log = FileLog(root)
    digest = hashlib.sha256()
    for settings in plan.settings:
        digest.update(settings)
    for component in plan.components:
        _write_component(component, folder / component.folder, log, digest, dtype=dtype, on_bytes=on_bytes)
    log.write(folder / RECIPE_NAME, plan.recipe.model_dump(mode="json", by_alias=True))
    sync_tree(folder)
    return Converted(tuple(log.files), digest.hexdigest())


def _write_component(
    component: Component,
    folder: Path,
    log: FileLog,
    digest: hashlib._Hash,
    *,
    dtype: Dtype | None,
    on_bytes: Callable[[int], None],
) -> None:
    stored = STORED[dtype] if dtype else None

    def on_read(name: str, array: Array) -> None:
        digest.update(name.encode())
        digest.update(raw(array))
        on_bytes(array.nbytes)

    write_weights(folder, component.tensors(stored), component.values(stored, on_read), log)
    for name, content in component.files.items():
        log.write(folder / name, _typed(name, content, component, stored))


def _typed(
    name: str, content: dict[str, Any] | bytes, component: Component, stored: str | None
) -> dict[str, Any] | bytes:
    """Add the type of the weights to a model's configuration."""
    if name != CONFIG_NAME or component.folder == PROJECTOR_DIR or isinstance(content, bytes):
        return content
    return {**content, "torch_dtype": TORCH_DTYPES[stored or component.dtype]}
