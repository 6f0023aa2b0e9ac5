"""The library: one class, one question at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, Unpack

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_client import address
from multimodal_client.kserve import HttpWire
from multimodal_client.openai import OpenAiModel
from multimodal_client.question import Question, Wishes
from multimodal_client.triton import TritonModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_client.address import Address
    from multimodal_client.media import Media

DEFAULT_TIMEOUT: Final = 300.0
"""Seconds; NeMo's client has 60, which a long answer on a CPU exceeds."""


class Model(Protocol):
    """A model, over one of the protocols: `TritonModel`, `OpenAiModel`."""

    def wait_ready(self, timeout: float) -> None:
        """Wait until it is ready."""

    def ask(self, question: Question) -> list[str]:
        """Give all answers."""

    def stream(self, question: Question) -> Iterator[str]:
        """Give one answer as it comes."""


def open_model(url: str, model_name: str, timeout: float) -> Model:
    """Choose the protocol that an address names.

    Args:
        url: what `address.parse` takes.
        model_name: on the wire.
        timeout: longest wait for an answer, in seconds.

    Raises:
        ProductError: not an address, or a package for its protocol is missing.
    """
    where = address.parse(url)
    if where.protocol is address.Protocol.OPENAI:
        return OpenAiModel(where, model_name, timeout)
    if where.protocol is address.Protocol.GRPC:
        return _over_grpc(where, model_name, timeout)
    return TritonModel(HttpWire(where, timeout), model_name)


class Client:
    """One model on one server. It holds no connection, and may be used from several threads."""

    def __init__(
        self, url: str, model_name: str, *, family: Family = Family.NEVA, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Name the model.

        Args:
            url: HOST, HOST:PORT or http(s)://HOST[:PORT] for Triton, grpc://HOST[:PORT] for Triton over gRPC,
                http(s)://HOST[:PORT]/v1 for OpenAI's API; the ports without one are 8000, 8001 and 9000.
            model_name: on the wire.
            family: of the model: it decides what media are.
            timeout: longest wait for an answer, in seconds.
        """
        self._model = open_model(url, model_name, timeout)
        self._family = family

    def wait_ready(self, timeout: float) -> None:
        """Wait until the model is ready, `timeout` seconds at most.

        Raises:
            ProductError: it was not.
        """
        self._model.wait_ready(timeout)

    def query(
        self,
        text: str,
        medium: Media,
        *,
        batch_size: int | None = None,
        **wishes: Unpack[Wishes],
    ) -> list[str]:
        """Ask a question about a picture, a video or a sound.

        Args:
            text: the question. For lita and vita, moments of a video that is a file are seconds (`<2.5>`), in the
                answers too (`<3.25>`).
            medium: what `media.load` takes: a path, a URL, the content of a file, an array; over OpenAI's API no array.
            batch_size: answers wanted to this one question.
            **wishes: how, as `Wishes` has it.

        Returns:
            `batch_size` answers, by default one.

        Raises:
            ProductError: the medium cannot be read, or the server refuses, fails or is too slow.
        """
        return self._model.ask(Question(text, medium, self._family, batch_size=batch_size, **wishes))

    def stream(
        self,
        text: str,
        medium: Media,
        **wishes: Unpack[Wishes],
    ) -> Iterator[str]:
        """Ask as `query` does and give the answer as it comes; closing the iterator ends the work for it.

        Over Triton's HTTP port only sounds can be asked about in this way: use gRPC or OpenAI's API.

        Yields:
            Pieces that join to the answer of `query`; some may be empty.

        Raises:
            ProductError: as `query` does, perhaps after some pieces.
        """
        return self._model.stream(Question(text, medium, self._family, **wishes))


def _over_grpc(where: Address, model_name: str, timeout: float) -> Model:
    try:
        from multimodal_client.kserve_grpc import GrpcWire  # noqa: PLC0415 -- most questions go over HTTP
    except ModuleNotFoundError as error:
        raise ProductError(
            Reason.BACKEND_UNAVAILABLE,
            at=str(where),
            problem=f"the Python package {error.name!r} is not installed here",
            remedy="install multimodal-operator[client], or ask over HTTP",
        ) from error
    return TritonModel(GrpcWire(where, timeout), model_name)
