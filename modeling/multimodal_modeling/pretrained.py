"""Loading a component's folder with transformers: each parameter set exactly once, or an error that lists the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from transformers.utils import logging

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

SHOWN: Final = 5
"""Names printed of a difference; the rest is counted."""

REBUILD: Final = "delete the engine's folder in the store: the operator builds it again"


def load_pretrained(
    from_pretrained: Callable[..., object], folder: Path, *, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Load a model in inference mode.

    Args:
        from_pretrained: Of the class that makes the model.
        folder: `config.json` and `model*.safetensors`.
        dtype: Of the parameters in memory, whatever the files hold.
        device: Where the parameters go.

    Raises:
        ProductError: a file is missing or broken, or files and model do not name the same tensors in the same shapes.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # logs are JSON lines
    try:
        loaded = from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise corrupt(str(folder), str(error)) from error
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    if difference := describe_difference(info):
        raise corrupt(str(folder), difference)
    module = cast("torch.nn.Module", model)  # transformers' own overrides are not typed
    module.to(device).eval().requires_grad_(requires_grad=False)
    return model


def describe_difference(info: dict[str, Any]) -> str:
    """Say which tensors are missing, which are too many, and which differ in shape; empty when all is well."""
    parts = (
        _some("missing", sorted(info["missing_keys"])),
        _some("left over", sorted(info["unexpected_keys"])),
        _some("of another shape", sorted(str(key) for key in info["mismatched_keys"])),
    )
    return "; ".join(part for part in parts if part)


def corrupt(at: str, problem: str) -> ProductError:
    """Make the error of an engine whose files contradict each other."""
    return ProductError(Reason.ENGINE_CORRUPT, at=at, problem=problem, remedy=REBUILD)


def _some(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{label}: {', '.join(names[:SHOWN])}{more}"
