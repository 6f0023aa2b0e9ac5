"""From safetensors files to a module's parameters: each set exactly once, or an error that lists the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

CONFIG_NAME: Final = "config.json"
WEIGHTS_GLOB: Final = "model*.safetensors"
SHOWN: Final = 5
"""Names printed of a difference; the rest is counted."""

REBUILD: Final = "delete the engine's folder in the store: the operator builds it again"

_Config = TypeVar("_Config", bound=BaseModel)
_Module = TypeVar("_Module", bound="nn.Module")


def read_config(folder: Path, model: type[_Config]) -> _Config:
    """Read `config.json` of one component.

    Raises:
        ProductError: the file is absent, no JSON, or lacks what the model needs.
    """
    path = folder / CONFIG_NAME
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise corrupt(str(path), "the file is missing") from None
    except ValidationError as error:
        raise corrupt(str(path), str(error)) from error


def load_module(folder: Path, make: Callable[[], _Module], *, dtype: torch.dtype, device: torch.device) -> _Module:
    """Make a module without memory, then give it the tensors of a folder, cast one by one.

    Args:
        folder: Holds `model*.safetensors`, sharded or not.
        make: Constructs the module; called with the meta device as default.
        dtype: Of the parameters in memory, whatever the files hold.
        device: Where the parameters go.

    Raises:
        ProductError: files and module do not name the same tensors in the same shapes.
    """
    with torch.device("meta"):
        module = make()
    state = _read(folder, dtype=dtype, device=device)
    wanted = {name: tuple(parameter.shape) for name, parameter in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        raise corrupt(str(folder), describe_difference(wanted, found))
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(requires_grad=False)


def describe_difference(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    """Say which tensors are missing, which are too many, and which differ in shape."""
    shapes = [
        f"{name} is {list(found[name])}, not {list(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    parts = (
        _some("missing", sorted(wanted.keys() - found.keys())),
        _some("left over", sorted(found.keys() - wanted.keys())),
        _some("of another shape", shapes),
    )
    return "; ".join(part for part in parts if part)


def corrupt(at: str, problem: str) -> ProductError:
    """Make the error of an engine whose files contradict each other."""
    return ProductError(Reason.ENGINE_CORRUPT, at=at, problem=problem, remedy=REBUILD)


def _read(folder: Path, *, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob(WEIGHTS_GLOB)):
        try:
            with safe_open(path, framework="pt") as file:
                opened = cast("Any", file)
                state |= {name: opened.get_tensor(name).to(device=device, dtype=dtype) for name in opened.keys()}  # noqa: SIM118 (no dictionary)
        except SafetensorError as error:
            raise corrupt(str(path), str(error)) from error
    return state


def _some(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{label}: {', '.join(names[:SHOWN])}{more}"
