"""A model behind Triton, over either of its protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from multimodal_api import wire
from multimodal_api.families import Family
from multimodal_client import failures, media
from multimodal_client.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from multimodal_client.address import Address
    from multimodal_client.question import Question

    Tensors = Mapping[str, NDArray[Any]]

_NUMPY: Final = {"INT64": np.int64, "FP32": np.float32}
_TIMED: Final = frozenset({Family.LITA, Family.VITA})


class Wire(Protocol):
    """One of Triton's protocols: `HttpWire`, `GrpcWire`."""

    address: Address

    def wait_ready(self, model: str, timeout: float) -> None:
        """Wait until a model is ready."""

    def infer(self, model: str, inputs: Tensors) -> NDArray[np.object_]:
        """Ask for a whole answer."""

    def stream(self, model: str, inputs: Tensors) -> Iterator[list[bytes]]:
        """Ask for an answer in pieces."""


class TritonModel:
    """One model, and the same in pieces."""

    def __init__(self, wire: Wire, name: str) -> None:
        """Name the model.

        Args:
            wire: how to speak to the server.
            name: of the model.
        """
        self._wire = wire
        self._name = name

    def wait_ready(self, timeout: float) -> None:
        """Wait until the model is ready, `timeout` seconds at most."""
        self._wire.wait_ready(self._name, timeout)

    def ask(self, question: Question) -> list[str]:
        """Give all answers."""
        asked = _read(question)
        outputs = self._wire.infer(self._name, asked.tensors)
        answers = [answer.decode() for answer in outputs.reshape(-1)]
        for answer in answers:
            self._check(answer)
        return [asked.moments.told(answer) for answer in answers]

    def stream(self, question: Question) -> Iterator[str]:
        """Give one answer as it comes."""
        asked = _read(question)
        times = asked.moments.stream()
        for (piece,) in self._wire.stream(self._name + wire.STREAM_SUFFIX, asked.tensors):
            text = piece.decode()
            yield text if times is None else times.push(text)
        if times is not None:
            yield times.finish()

    def _check(self, answer: str) -> None:
        """Recognise NeMo's own server, which gave errors as answers."""
        if answer.startswith(wire.ERROR_PREFIX):
            said = answer.removeprefix(wire.ERROR_PREFIX)
            raise failures.refused(self._wire.address, said, code="with an error", wrong=False)


class _Asked(NamedTuple):
    """A question as Triton takes it."""

    tensors: Tensors
    moments: Moments


def _read(question: Question) -> _Asked:
    """Read the medium and make the tensors.

    Raises:
        ProductError: it cannot be read, or is not what the family takes.
    """
    loaded = media.load(question.medium, question.family)
    timed = question.tell_seconds and question.family in _TIMED
    moments = Moments(loaded.seconds if timed else None)
    scalars = {
        wire.BATCH_SIZE: question.batch_size,
        wire.MAX_OUTPUT_LEN: question.max_output_len,
        wire.TOP_K: question.top_k,
        wire.TOP_P: question.top_p,
        wire.TEMPERATURE: question.temperature,
        wire.REPETITION_PENALTY: question.repetition_penalty,
        wire.NUM_BEAMS: question.num_beams,
    }
    tensors = {wire.INPUT_TEXT.name: _texts([moments.asked(question.text)]), **loaded.tensors}
    tensors |= {
        tensor.name: np.array([[value]], dtype=_NUMPY[tensor.datatype])
        for tensor, value in scalars.items()
        if value is not None
    }
    if question.lora_uids is not None:
        tensors[wire.LORA_UIDS.name] = _texts(question.lora_uids)
    return _Asked(tensors, moments)


def _texts(texts: Sequence[str]) -> NDArray[np.object_]:
    """Make a row of texts, [1, texts]."""
    return np.array([[text.encode() for text in texts]], dtype=object)
