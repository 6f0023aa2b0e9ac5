"""NeMo's `NemoQueryMultimodal`, with the same arguments and results, for code that was written for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multimodal_api import wire
from multimodal_api.families import Family
from multimodal_client.client import DEFAULT_TIMEOUT, open_model
from multimodal_client.question import Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class NemoQueryMultimodal:
    """Ask a model as NeMo's client does. An error is raised, never returned as an answer."""

    def __init__(self, url: str, model_name: str, model_type: str) -> None:
        """Name the model.

        Args:
            url: HOST, HOST:PORT, http://HOST:PORT or grpc://HOST:PORT.
            model_name: on the wire.
            model_type: family, such as `neva`; as in NeMo's client, `query` is what refuses unknown ones.
        """
        self._url, self._model_name, self._model_type = url, model_name, model_type

    def query(
        self,
        input_text: str,
        input_media: str,
        batch_size: int | None = 1,
        max_output_len: int | None = wire.DEFAULT_MAX_OUTPUT_LEN,
        top_k: int | None = wire.DEFAULT_TOP_K,
        top_p: float | None = wire.DEFAULT_TOP_P,
        temperature: float | None = wire.DEFAULT_TEMPERATURE,
        repetition_penalty: float | None = wire.DEFAULT_REPETITION_PENALTY,
        num_beams: int | None = 1,
        init_timeout: float = 60.0,
        lora_uids: Sequence[str] | None = None,
    ) -> NDArray[np.str_]:
        """Ask a question.

        Args:
            input_text: the question.
            input_media: path or http(s) URL of a picture; of a sound for salm; of a video for video-neva, lita, vita.
            batch_size: answers wanted; None leaves it, as every other number, to the server.
            max_output_len: longest answer, in tokens.
            top_k: sample from the best so many tokens.
            top_p: sample from the best tokens that have this probability together; 0 is off.
            temperature: divides the logits.
            repetition_penalty: above 1 avoids words that were said.
            num_beams: 1.
            init_timeout: longest wait for the model to be ready, in seconds.
            lora_uids: None or "-1".

        Returns:
            [batch_size, 1] texts.

        Raises:
            RuntimeError: an unknown family.
            ProductError: the medium cannot be read, or the server refuses, fails or is too slow.
        """
        if self._model_type not in set(Family):
            raise RuntimeError(f"Invalid model type {self._model_type}; known are: {', '.join(Family)}")
        model = open_model(self._url, self._model_name, DEFAULT_TIMEOUT)
        model.wait_ready(init_timeout)
        question = Question(
            input_text,
            input_media,
            Family(self._model_type),
            batch_size=batch_size,
            max_output_len=max_output_len,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            num_beams=num_beams,
            lora_uids=lora_uids,
            tell_seconds=False,  # code that was written for NeMo's client does it itself
        )
        answers = model.ask(question)
        return np.array(answers, dtype=np.str_)[:, None]
