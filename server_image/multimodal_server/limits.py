"""What a request may be: everything is checked here, before any work is done for it."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Sampling
from multimodal_recipes.images import check_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from multimodal_api.engine import Limits
    from multimodal_recipes.prompt import Prompt

MAX_TEXT_BYTES: Final = 2**20
"""Of UTF-8: a bound on the work of the tokenizer; the tokens are counted after it."""
MAX_PICTURES: Final = 1
"""NeVA's template has one media slot."""
MAX_FACTOR: Final = 100.0
"""Bound of temperature and repetition penalty: beyond it every answer is noise."""
MAX_TOP_K: Final = 2**31 - 1
NO_LORA: Final = b"-1"
"""What NeMo's client sends for a request without adapter."""

_SEED_BITS: Final = 63


@dataclass(frozen=True, slots=True)
class Question:
    """One request, checked."""

    text: str
    frames: NDArray[np.uint8]
    """[1, height, width, 3]"""
    copies: int
    """Answers wanted."""
    max_output_len: int
    sampling: Sampling


def read_question(tensors: Mapping[str, NDArray[Any]], limits: Limits) -> Question:
    """Make a question of a request's tensors.

    Args:
        tensors: by name, with the batch dimension, of the datatypes in `multimodal_api.wire`, which Triton has checked.
        limits: of the engine.

    Raises:
        ProductError: a value is out of its bounds; field, value and remedy are named.
    """
    _check_what_is_not_offered(tensors)
    return Question(
        text=_text(tensors[wire.INPUT_TEXT.name]),
        frames=_frames(tensors[wire.INPUT_MEDIA.name]),
        copies=_integer(tensors, wire.BATCH_SIZE, 1, low=1, high=limits.max_batch_size, of="spec.limits.maxBatchSize"),
        max_output_len=_integer(
            tensors,
            wire.MAX_OUTPUT_LEN,
            min(wire.DEFAULT_MAX_OUTPUT_LEN, limits.max_output_len),
            low=1,
            high=limits.max_output_len,
            of="spec.limits.maxOutputLen",
        ),
        sampling=Sampling(
            temperature=_real(tensors, wire.TEMPERATURE, wire.DEFAULT_TEMPERATURE, low=0, high=MAX_FACTOR),
            top_k=_integer(tensors, wire.TOP_K, wire.DEFAULT_TOP_K, low=0, high=MAX_TOP_K),
            top_p=_real(tensors, wire.TOP_P, wire.DEFAULT_TOP_P, low=0, high=1),
            repetition_penalty=_real(
                tensors, wire.REPETITION_PENALTY, wire.DEFAULT_REPETITION_PENALTY, low=1 / MAX_FACTOR, high=MAX_FACTOR
            ),
            seed=secrets.randbits(_SEED_BITS),
        ),
    )


def check_prompt(prompt: Prompt, *, max_output_len: int, limits: Limits, max_positions: int) -> None:
    """Refuse a prompt that the engine has no room for.

    Args:
        prompt: tokenised, media positions included.
        max_output_len: of the answer, in tokens.
        limits: of the engine.
        max_positions: longest sequence that the language model was made for.

    Raises:
        ProductError: too long.
    """
    length = len(prompt.ids)
    if prompt.media_length > limits.max_multimodal_len:
        raise _refuse(
            wire.INPUT_MEDIA.name,
            f"takes {prompt.media_length} positions, and the engine was built for {limits.max_multimodal_len}",
            "raise spec.limits.maxMultimodalLen",
        )
    if length > limits.max_input_len:
        raise _refuse(
            wire.INPUT_TEXT.name,
            f"the prompt has {length} tokens ({prompt.media_length} of them media), and the engine was built for "
            f"{limits.max_input_len}",
            f"shorten the text by {length - limits.max_input_len} tokens, or raise spec.limits.maxInputLen",
        )
    if length + max_output_len > max_positions:
        raise _refuse(
            wire.MAX_OUTPUT_LEN.name,
            f"{length} tokens of prompt and {max_output_len} of answer exceed the model's {max_positions} positions",
            f"ask for at most {max(0, max_positions - length)} tokens, or shorten the text",
        )


def _check_what_is_not_offered(tensors: Mapping[str, NDArray[Any]]) -> None:
    beams = _integer(tensors, wire.NUM_BEAMS, 1, low=-MAX_TOP_K, high=MAX_TOP_K)
    if beams != 1:
        raise _refuse(wire.NUM_BEAMS.name, f"is {beams}, and this server has no beam search", "leave it out, or send 1")
    adapters = tensors.get(wire.LORA_UIDS.name)
    if adapters is not None and any(uid != NO_LORA for uid in adapters.reshape(-1)):
        raise _refuse(
            wire.LORA_UIDS.name,
            "names an adapter, and this engine has none at run time",
            'leave it out, or send "-1"; an adapter is merged when the engine is built (spec.model.loraCheckpoint)',
        )


def _text(tensor: NDArray[Any]) -> str:
    name = wire.INPUT_TEXT.name
    if tensor.size != 1:
        raise _refuse(name, f"holds {tensor.size} texts (shape {list(tensor.shape)})", "send one text, shape [1, 1]")
    raw: bytes = tensor.reshape(-1)[0]
    if len(raw) > MAX_TEXT_BYTES:
        raise _refuse(name, f"is {len(raw)} bytes long", f"shorten the text to at most {MAX_TEXT_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _refuse(name, f"is not UTF-8 at byte {error.start}", "encode the text as UTF-8") from None
    if not text.strip():
        raise _refuse(name, "is empty", "send a question")
    return text


def _frames(tensor: NDArray[Any]) -> NDArray[np.uint8]:
    name = wire.INPUT_MEDIA.name
    pictures, height, width = tensor.shape[1:4]
    if tensor.shape[0] != 1 or pictures != MAX_PICTURES:
        raise _refuse(
            name,
            f"holds {tensor.shape[0] * pictures} pictures (shape {list(tensor.shape)})",
            f"send {MAX_PICTURES} picture, shape [1, {MAX_PICTURES}, height, width, 3]",
        )
    check_size(height, width, at=name)
    frames: NDArray[np.uint8] = tensor[0]
    return frames


def _integer(
    tensors: Mapping[str, NDArray[Any]], tensor: wire.Tensor, default: int, *, low: int, high: int, of: str = ""
) -> int:
    value = _one(tensors, tensor, default)
    _check_bounds(tensor.name, value, low, high, of=of)
    return int(value)


def _real(
    tensors: Mapping[str, NDArray[Any]], tensor: wire.Tensor, default: float, *, low: float, high: float
) -> float:
    value = _one(tensors, tensor, default)
    _check_bounds(tensor.name, value, low, high)
    return value


def _one(tensors: Mapping[str, NDArray[Any]], tensor: wire.Tensor, default: float) -> float:
    """Give the one element of a scalar's tensor, or the default where it was left out."""
    found = tensors.get(tensor.name)
    if found is None:
        return default
    if found.size != 1:
        raise _refuse(
            tensor.name, f"holds {found.size} values (shape {list(found.shape)})", "send one value, shape [1, 1]"
        )
    value: float = found.reshape(-1)[0].item()
    return value


def _check_bounds(name: str, value: float, low: float, high: float, *, of: str = "") -> None:
    if math.isnan(value) or not low <= value <= high:
        limit = f" ({of} is {high})" if of and value > high else ""
        raise _refuse(name, f"is {value}{limit}", f"send a value between {low} and {high}, or leave it out")


def _refuse(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.REQUEST_REFUSED, at=at, problem=problem, remedy=remedy)
