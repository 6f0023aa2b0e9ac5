"""Writing the canonical model: one Hugging Face folder per component, streamed tensor by tensor."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from multimodal_builder.casts import STORED
from multimodal_builder.files import FileLog, sync_tree
from multimodal_builder.safetensors_writer import WEIGHTS_SUFFIX, write_weights
from multimodal_recipes.recipe import PROJECTOR_DIR, RECIPE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from multimodal_api.engine import Dtype, EngineFile
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
    """Digest of everything that was read: the settings, the tensors' names, and their values. For these stand the
    digests of the weight files that they became: each byte is hashed once, and none is lost but by a change of type."""


def write_canonical(
    plan: Plan, folder: Path, *, root: Path, dtype: Dtype | None, on_bytes: Callable[[int], None]
) -> Converted:
    """Convert.

    Args:
        plan: From headers.
        folder: Where the model goes; must not exist.
        root: What paths in the result start from.
        dtype: Type of all weights as they are written; None keeps each as it is.
        on_bytes: Told of bytes that were read.
    """
    log = FileLog(root)
    stored = STORED[dtype] if dtype else None
    for component in plan.components:
        target = folder / component.folder
        write_weights(target, component.tensors(stored), component.values(stored, on_bytes), log)
        for name, content in component.files.items():
            log.write(target / name, _typed(name, content, component, stored))
    log.write(folder / RECIPE_NAME, plan.recipe.model_dump(mode="json", by_alias=True))
    sync_tree(folder)
    return Converted(tuple(log.files), _digest(plan, log))


def _digest(plan: Plan, log: FileLog) -> str:
    names = [step.source for component in plan.components for step in component.mapped.steps]
    weights = [file.sha256 for file in log.files if file.path.endswith(WEIGHTS_SUFFIX)]
    digest = hashlib.sha256()
    for part in (*plan.settings, "\n".join([*names, *weights]).encode()):
        digest.update(part)
    return digest.hexdigest()


def _typed(
    name: str, content: dict[str, Any] | bytes, component: Component, stored: str | None
) -> dict[str, Any] | bytes:
    """Add the type of the weights to a model's configuration."""
    if name != CONFIG_NAME or component.folder == PROJECTOR_DIR or isinstance(content, bytes):
        return content
    return {**content, "torch_dtype": TORCH_DTYPES[stored or component.dtype]}
