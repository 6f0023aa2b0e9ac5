"""The border between the stages of a build and the libraries that run engines."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from multimodal_api.engine import Quantization
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.engine import Backend, BuildInputs, EngineFile


class BuildBackend(Protocol):
    """One backend."""

    def check(self, inputs: BuildInputs, /) -> None:
        """Refuse what it cannot build, before anything is read.

        Raises:
            ProductError: its library is not in this image, or it does not offer what is asked for.
        """

    def build(self, engine: Path, inputs: BuildInputs, /) -> tuple[EngineFile, ...]:
        """Write what the backend loads beside the canonical model in an engine's folder; give the new files."""

    def verify(self, engine: Path, inputs: BuildInputs, /) -> str:
        """Answer one question with the engine as it is written.

        Returns:
            The answer.

        Raises:
            ProductError: it cannot be loaded, or does not compute.
        """


def require_library(backend: Backend, module: str) -> None:
    """Look for a library without importing it.

    Raises:
        ProductError: this environment does not have it.
    """
    if find_spec(module) is None:
        raise ProductError(
            Reason.BACKEND_UNAVAILABLE,
            at="spec.engine.backend",
            problem=f"{backend} needs the Python package {module}, which this image does not hold",
            remedy="set spec.build.image to one that holds it, or the backend to torch with numGpus 0 or 1",
        )


def refuse_quantization(backend: Backend, inputs: BuildInputs) -> None:
    """Refuse weights below 16 bits.

    Raises:
        ProductError: they are asked for.
    """
    if inputs.quantization is not Quantization.NONE:
        raise ProductError(
            Reason.NOT_IMPLEMENTED,
            at="spec.engine.quantization",
            problem=f"{inputs.quantization} weights for the {backend} backend are not built by this version",
            remedy="write none",
        )
