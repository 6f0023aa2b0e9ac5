"""Adapters of Hugging Face's peft: a folder with `adapter_config.json` and the matrices of LoRA.

A matrix is named after the layer that it changes, `base_model.model.<layer>.lora_A.weight` and `….lora_B.weight`. The
change is scale · B · A, its transpose where the layer's weight is [inputs, outputs] (`fan_in_fan_out`, and embeddings).
The scale is alpha / rank, or alpha / √rank with `use_rslora`; both numbers may differ from layer to layer.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import not_found, unreadable
from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder, SafetensorsSource
from multimodal_builder.checkpoints.tensors import FLOATS
from multimodal_builder.tower_config import validated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from multimodal_builder.checkpoints.tensors import TensorInfo, TensorSource
    from multimodal_builder.checkpoints.window import Window

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS: Final[Mapping[str, Callable[[Window], TensorSource]]] = {
    "adapter_model.safetensors": SafetensorsSource,
    "adapter_model.bin": CkptSource,
}

PLAIN_STARTS: Final = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the model's own weights as they are; all others change these too."""

NOT_MERGED: Final = {
    "use_dora": "DoRA",
    "modules_to_save": "other layers trained as a whole",
    "trainable_token_indices": "trained rows of the embedding",
    "lora_bias": "biases of LoRA's matrices",
    "target_parameters": "adapters of parameters that are no layers",
    "layer_replication": "layers that are used twice",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "LoRA that begins at a token",
    "arrow_config": "LoRA that is chosen for each token",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "Monte Carlo LoRA",
}
"""Keys of the configuration that may only be off, and what they are."""

_REMEDY: Final = "merge it with peft beforehand (merge_and_unload), and give the merged model"

_TENSOR: Final = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?"
)
_PATTERN: Final = re.compile(r"\^?(?:[\w.]|\\[.d]\+?|\.\*|[()|])*")
"""What keys of `rank_pattern` and `alpha_pattern` may be: expressions of a stranger can run for years."""
_MOST_REPEATED: Final = 3
_LONGEST: Final = 200


class PeftConfig(BaseModel):
    """`adapter_config.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: str
    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 8
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    def scale(self, layer: str, at: str) -> tuple[int, float]:
        """Give a layer's rank and the factor of its change.

        Raises:
            ProductError: a pattern is none that is taken.
        """
        rank = _of_layer(self.rank_pattern or {}, layer, self.r, at)
        alpha = _of_layer(self.alpha_pattern or {}, layer, self.lora_alpha, at)
        return int(rank), alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter adds to a weight: scale · B · A, or its transpose."""

    inward: str
    outward: str
    scale: float
    transposed: bool
    shape: tuple[int, int]
    """Of the weight."""


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """An open folder of peft's."""

    at: str
    """What to call it in an error."""
    tensors: TensorSource
    changes: Mapping[str, Change]
    """By the names of layers, as peft has them."""
    settings: bytes


def is_peft_folder(path: Path) -> bool:
    """Tell whether a path is a folder of peft's, rather than a checkpoint of NeMo."""
    return (path / CONFIG_NAME).is_file()


def open_peft(path: Path, opened: ExitStack) -> PeftFolder:
    """Open a folder; reads its configuration and the header of its weights.

    Args:
        path: Of the folder.
        opened: Closes its files.

    Raises:
        ProductError: it is damaged, or trains something else than LoRA's matrices.
    """
    folder = HuggingFaceFolder(path)
    opened.callback(folder.close)
    document = folder.json(CONFIG_NAME)
    at = f"{path.name}/{CONFIG_NAME}"
    config = validated(PeftConfig, document, at)
    _check(config, document, at)
    tensors = _open_weights(folder)
    changes = _changes(tensors.infos(), config, path.name)
    return PeftFolder(path.name, tensors, changes, json.dumps(document, sort_keys=True).encode())


def _open_weights(folder: HuggingFaceFolder) -> TensorSource:
    for name, source in WEIGHTS.items():
        if (folder.path / name).is_file():
            return source(folder.file(name))
    raise not_found(
        str(folder.path), f"neither {' nor '.join(WEIGHTS)} is in this folder", "copy the whole adapter there"
    )


def _check(config: PeftConfig, document: Mapping[str, Any], at: str) -> None:
    if config.peft_type != "LORA":
        raise config_error(f"{at}: peft_type", f"is {config.peft_type[:60]!r}, which is no LoRA", _REMEDY)
    for key, what in NOT_MERGED.items():
        if document.get(key):
            raise config_error(f"{at}: {key}", f"means {what}, which is not merged", _REMEDY)
    if config.bias != "none":
        raise config_error(f"{at}: bias", f"is {config.bias[:60]!r}: trained biases are not merged", _REMEDY)
    if config.init_lora_weights not in PLAIN_STARTS:
        raise config_error(
            f"{at}: init_lora_weights",
            f"is {str(config.init_lora_weights)[:60]!r}, which changes the model's own weights too",
            _REMEDY,
        )


def _changes(infos: Mapping[str, TensorInfo], config: PeftConfig, at: str) -> dict[str, Change]:
    halves: dict[str, dict[str, str]] = {}
    embeddings = set()
    for name in infos:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise unreadable(f"{at}: {name}", "is no matrix of LoRA", _REMEDY)
        halves.setdefault(match["layer"], {})[match["side"]] = name
        if match["kind"]:
            embeddings.add(match["layer"])
    if not halves:
        raise unreadable(at, "holds no adapter", "give the folder that peft saved")
    return {
        layer: _change(layer, sides, infos, config, f"{at}: {layer}", transposed=layer in embeddings)
        for layer, sides in halves.items()
    }


def _change(
    layer: str,
    sides: Mapping[str, str],
    infos: Mapping[str, TensorInfo],
    config: PeftConfig,
    at: str,
    *,
    transposed: bool,
) -> Change:
    if len(sides) != len({"A", "B"}):
        raise unreadable(at, "its other half, lora_A or lora_B, is missing", "copy the whole adapter")
    first, second = infos[sides["A"]], infos[sides["B"]]
    rank, scale = config.scale(layer, at)
    if first.dtype not in FLOATS or second.dtype not in FLOATS:
        raise unreadable(at, f"types {first.dtype} and {second.dtype} are no types of weights", "save as float")
    match first.shape, second.shape:
        case (int(inner), int(inputs)), (int(outputs), int(other)) if inner == other == rank:
            transposed = transposed or config.fan_in_fan_out
            shape = (inputs, outputs) if transposed else (outputs, inputs)
            return Change(sides["A"], sides["B"], scale, transposed, shape)
    raise unreadable(
        at,
        f"shapes {list(first.shape)} and {list(second.shape)} are none of rank {rank}",
        f"use the {CONFIG_NAME} that belongs to the adapter",
    )


def _of_layer(patterns: Mapping[str, float], layer: str, default: float, at: str) -> float:
    """Give the value of the first pattern that a layer's name ends with, as peft does."""
    for pattern, value in patterns.items():
        repeated = pattern.count("*") + pattern.count("+")
        if _PATTERN.fullmatch(pattern) is None or repeated > _MOST_REPEATED or len(pattern) > _LONGEST or value <= 0:
            raise config_error(
                f"{at}: rank_pattern or alpha_pattern",
                f"{pattern[:60]!r} for {value} is not taken",
                "name layers by letters, digits, '.', '.*', '\\d+' and '|'",
            )
        try:
            matched = re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer)
        except re.error as error:
            raise config_error(f"{at}: {pattern[:60]!r}", f"is no pattern: {error}", "correct it") from error
        if matched is not None:
            return value
    return default
