"""What a request over Triton may be: its tensors are checked here, before any work is done for it."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Any, Final

from multimodal_api import wire
from multimodal_api.families import Family
from multimodal_api.overrides import MEDIA_SLOT, TEXT_SLOT
from multimodal_api.worker_protocol import Sampling
from multimodal_recipes.audio import check_samples
from multimodal_recipes.images import check_size
from multimodal_recipes.waves import Wave
from multimodal_server.questions import Names, Question, Said, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multimodal_api.engine import Limits
    from multimodal_recipes.recipe import MelFrontEnd, PromptTemplate, Recipe
    from multimodal_server.questions import Frames, Shown

MAX_TEXT_BYTES: Final = 2**20
"""Of UTF-8: a bound on the work of the tokenizer; the tokens are counted after it."""
MAX_FACTOR: Final = 100.0
"""Bound of temperature and repetition penalty: beyond it every answer is noise."""
MAX_TOP_K: Final = 2**31 - 1
NO_LORA: Final = b"-1"
"""What NeMo's client sends for a request without adapter."""

_SEED_BITS: Final = 63


NAMES: Final = Names(wire.INPUT_TEXT.name, wire.INPUT_MEDIA.name, wire.MAX_OUTPUT_LEN.name)
SOUND_NAMES: Final = NAMES._replace(media=wire.INPUT_SIGNAL.name)
MARK: Final = "<image>"
"""Where NeMo's runners of `MARKED` put the media; elsewhere it is text."""
MARKED: Final = frozenset({Family.VILA, Family.LITA, Family.VITA})


def read_question(tensors: Mapping[str, NDArray[Any]], limits: Limits, recipe: Recipe) -> Question:
    """Make a question of a request's tensors.

    Args:
        tensors: by name, with the batch dimension, of the datatypes in `multimodal_api.wire`, which Triton has checked.
        limits: of the engine.
        recipe: of its model.

    Raises:
        ProductError: a value is out of its bounds; field, value and remedy are named.
    """
    _check_what_is_not_offered(tensors)
    return Question(
        turns=(Said(_content(tensors, recipe)),),
        names=NAMES if recipe.audio is None else SOUND_NAMES,
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


def _check_what_is_not_offered(tensors: Mapping[str, NDArray[Any]]) -> None:
    beams = _integer(tensors, wire.NUM_BEAMS, 1, low=-MAX_TOP_K, high=MAX_TOP_K)
    if beams != 1:
        raise refuse(wire.NUM_BEAMS.name, f"is {beams}, and this server has no beam search", "leave it out, or send 1")
    adapters = tensors.get(wire.LORA_UIDS.name)
    if adapters is not None and any(uid != NO_LORA for uid in adapters.reshape(-1)):
        raise refuse(
            wire.LORA_UIDS.name,
            "names an adapter, and this engine has none at run time",
            'leave it out, or send "-1"; an adapter is merged when the engine is built (spec.model.loraCheckpoint)',
        )


def _text(tensor: NDArray[Any]) -> str:
    name = wire.INPUT_TEXT.name
    if tensor.size != 1:
        raise refuse(name, f"holds {tensor.size} texts (shape {list(tensor.shape)})", "send one text, shape [1, 1]")
    raw: bytes = tensor.reshape(-1)[0]
    if len(raw) > MAX_TEXT_BYTES:
        raise refuse(name, f"is {len(raw)} bytes long", f"shorten the text to at most {MAX_TEXT_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise refuse(name, f"is not UTF-8 at byte {error.start}", "encode the text as UTF-8") from None
    return text


def _content(tensors: Mapping[str, NDArray[Any]], recipe: Recipe) -> tuple[str | Shown, ...]:
    text = _text(_needed(tensors, wire.INPUT_TEXT))
    if recipe.audio is not None:
        return (_wave(tensors, recipe.audio.mel), _asked(_unframed(text, recipe.template)))
    return _placed(_asked(text), _frames(_needed(tensors, wire.INPUT_MEDIA), recipe), recipe)


def _asked(text: str) -> str:
    if not text.strip():
        raise refuse(wire.INPUT_TEXT.name, "is empty", "send a question")
    return text


def _unframed(text: str, template: PromptTemplate) -> str:
    """Take off the words around a question that are the template's own: NeMo's clients of SALM send them.

    They write `Q: ... A:` with a blank where training had a line break.
    """
    ahead = template.medium.partition(MEDIA_SLOT)[2].strip()
    behind = template.turn.partition(TEXT_SLOT)[2].strip()
    bare = text.strip()
    inner = bare.removeprefix(ahead).removesuffix(behind)
    framed = ahead and behind and len(inner) == len(bare) - len(ahead) - len(behind)
    return inner.strip() if framed else text


def _placed(text: str, frames: Frames, recipe: Recipe) -> tuple[str | Shown, ...]:
    """Put the media where the text says, or in front of it."""
    if recipe.family not in MARKED or MARK not in text:
        return (frames, text)
    before, _, after = text.partition(MARK)
    return (before, frames, after.removeprefix("\n"))  # the template itself has the new line


def _frames(tensor: NDArray[Any], recipe: Recipe) -> Frames:
    name = wire.INPUT_MEDIA.name
    pictures, height, width = tensor.shape[1:4]
    if tensor.shape[0] != 1 or (recipe.seeing().video is None and pictures != 1):
        raise refuse(
            name,
            f"holds {tensor.shape[0] * pictures} pictures (shape {list(tensor.shape)})",
            "send 1 picture, shape [1, 1, height, width, 3]",
        )
    check_size(height, width, at=name)
    frames: Frames = tensor[0]
    return frames


def _wave(tensors: Mapping[str, NDArray[Any]], mel: MelFrontEnd) -> Wave:
    """Take as many samples of the signal as its length says; behind them is padding."""
    signal, name, of = _needed(tensors, wire.INPUT_SIGNAL), wire.INPUT_SIGNAL.name, wire.INPUT_SIGNAL_LENGTH.name
    rows, samples = signal.shape
    if rows != 1:
        raise refuse(name, f"holds {rows} sounds (shape {list(signal.shape)})", "send 1 sound, shape [1, samples]")
    length = int(_one(tensors, wire.INPUT_SIGNAL_LENGTH, samples))
    if not 1 <= length <= samples:
        raise refuse(
            of,
            f"is {length}, and {name} holds {samples} samples",
            f"send how many of them are sound, between 1 and {samples}",
        )
    sound = signal[0, :length]
    check_samples(sound, mel, at=name)
    return Wave(sound[:, None], mel.sample_rate)


def _needed(tensors: Mapping[str, NDArray[Any]], tensor: wire.Tensor) -> NDArray[Any]:
    """Give a tensor that every request has: Triton only counts them, and optional ones may stand in for it."""
    found = tensors.get(tensor.name)
    if found is None:
        raise refuse(tensor.name, "is missing", "send it beside the others")
    return found


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
        raise refuse(
            tensor.name, f"holds {found.size} values (shape {list(found.shape)})", "send one value, shape [1, 1]"
        )
    value: float = found.reshape(-1)[0].item()
    return value


def _check_bounds(name: str, value: float, low: float, high: float, *, of: str = "") -> None:
    if math.isnan(value) or not low <= value <= high:
        limit = f" ({of} is {high})" if of and value > high else ""
        raise refuse(name, f"is {value}{limit}", f"send a value between {low} and {high}, or leave it out")
