"""The library: one class, one question at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_client import kserve, media

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from multimodal_client.media import Media

DEFAULT_TIMEOUT: Final = 300.0
"""Seconds; NeMo's client has 60, which a long answer on a CPU exceeds."""

_NUMPY: Final = {"INT64": np.int64, "FP32": np.float32}


class Client:
    """One model on one server. It holds no connection, and may be used from several threads."""

    def __init__(
        self, url: str, model_name: str, *, family: Family = Family.NEVA, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Name the model.

        Args:
            url: HOST, HOST:PORT or http(s)://HOST[:PORT]; the port without one is 8000.
            model_name: on the wire.
            family: of the model: it decides what media are.
            timeout: longest wait for an answer, in seconds.
        """
        self._address = kserve.parse(url)
        self._model = model_name
        self._family = family
        self._timeout = timeout

    def wait_ready(self, timeout: float) -> None:
        """Wait until the model is ready, `timeout` seconds at most.

        Raises:
            ProductError: it was not.
        """
        kserve.wait_ready(self._address, self._model, timeout=timeout)

    def query(
        self,
        text: str,
        medium: Media,
        *,
        batch_size: int | None = None,
        max_output_len: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        num_beams: int | None = None,
        lora_uids: Sequence[str] | None = None,
    ) -> list[str]:
        """Ask a question about a picture, a video or a sound.

        Args:
            text: the question.
            medium: what `media.load` takes: a path, a URL, the content of a file, an array.
            batch_size: answers wanted to this one question.
            max_output_len: longest answer, in tokens.
            top_k: sample from the best so many tokens; 1 is greedy.
            top_p: sample from the best tokens that have this probability together; 0 is off.
            temperature: divides the logits.
            repetition_penalty: above 1 avoids words that were said.
            num_beams: 1; the server refuses others.
            lora_uids: "-1"; the server refuses others.

        Returns:
            `batch_size` answers. What is None is left out of the request: the server has defaults.

        Raises:
            ProductError: the medium cannot be read, or the server refuses, fails or is too slow.
        """
        inputs: dict[str, NDArray[Any]] = {
            wire.INPUT_TEXT.name: _texts([text]),
            **media.load(medium, self._family),
        }
        scalars = {
            wire.BATCH_SIZE: batch_size,
            wire.MAX_OUTPUT_LEN: max_output_len,
            wire.TOP_K: top_k,
            wire.TOP_P: top_p,
            wire.TEMPERATURE: temperature,
            wire.REPETITION_PENALTY: repetition_penalty,
            wire.NUM_BEAMS: num_beams,
        }
        inputs |= {
            tensor.name: np.array([[value]], dtype=_NUMPY[tensor.datatype])
            for tensor, value in scalars.items()
            if value is not None
        }
        if lora_uids is not None:
            inputs[wire.LORA_UIDS.name] = _texts(lora_uids)
        outputs = kserve.infer(self._address, self._model, inputs, timeout=self._timeout)
        answers = [answer.decode() for answer in outputs.reshape(-1)]
        for answer in answers:
            self._check(answer)
        return answers

    def _check(self, answer: str) -> None:
        """Recognise NeMo's own server, which gave errors as answers."""
        if answer.startswith(wire.ERROR_PREFIX):
            raise ProductError(
                Reason.SERVER_FAILED,
                at=str(self._address),
                problem=answer.removeprefix(wire.ERROR_PREFIX),
                remedy="see the server's log",
            )


def _texts(texts: Sequence[str]) -> NDArray[np.object_]:
    """Make a row of texts, [1, texts]."""
    return np.array([[text.encode() for text in texts]], dtype=object)
