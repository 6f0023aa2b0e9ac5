"""The one model under its two names, as PyTriton offers it to Triton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytriton.model_config.generator import ModelConfigGenerator
from pytriton.models.model import Model

from multimodal_server import sockets, triton_calls, triton_model, triton_stream
from multimodal_server.calls import CallServer

if TYPE_CHECKING:
    from types import ModuleType

    from pytriton.model_config import ModelConfig

    from multimodal_server.calls import Answer


@dataclass(frozen=True, slots=True)
class WholeAnswers:
    """What the model of whole answers is made of, in the place of PyTriton's callable."""

    answer: Answer
    threads: int
    """That call it."""


class _Written(Model):  # type: ignore[misc]  # pytriton ships no types
    """A model whose files lie in PyTriton's workspace. Sent over HTTP, Triton would leave them in /tmp at its end."""

    def generate_model(self, model_repository: Path) -> None:
        """Write them."""
        folder = model_repository / self.model_name
        ModelConfigGenerator(config=self._get_triton_model_config()).to_file(folder / "config.pbtxt")
        for name, content in self.get_proxy_model_files().items():
            path = folder / name.removeprefix("file:")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


class Pieces(_Written):
    """The model of answers in pieces: PyTriton's, with errors and requests that pass through `triton_model.py`."""

    def get_proxy_model_files(self) -> dict[str, bytes]:
        """Give PyTriton's files, and ours before them."""
        files: dict[str, bytes] = super().get_proxy_model_files()
        files[f"file:{self.model_version}/pytriton_model.py"] = files[f"file:{self.model_version}/model.py"]
        return files | _files(self.model_version, triton_model, triton_stream)


class Whole(_Written):
    """The model of whole answers: one process of Triton's asks for all requests over a socket."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._calls: CallServer | None = None

    def get_proxy_model_files(self) -> dict[str, bytes]:
        """Give our files, in place of PyTriton's."""
        return _files(self.model_version, triton_model, triton_calls, sockets)

    def setup(self) -> None:
        """Connect: Triton has loaded the model."""
        made: WholeAnswers
        (made,) = self.infer_functions
        self._calls = CallServer(self._workspace.path / triton_calls.SOCKET, made.answer, threads=made.threads)

    def clean(self) -> None:
        """Answer no more."""
        if self._calls is not None:
            self._calls.close()

    def is_alive(self) -> bool:
        """Say whether Triton's process is connected."""
        return self._calls is not None and self._calls.is_alive()


def make_model(*, config: ModelConfig, **settings: object) -> Model:
    """Make a model, in the place of PyTriton's class."""
    return (Pieces if config.decoupled else Whole)(config=config, **settings)


def _files(version: int, entry: ModuleType, *beside: ModuleType) -> dict[str, bytes]:
    """Name files of ours as Triton is given them: the model itself, and what it imports."""
    names = {"model.py": entry} | {f"{module.__name__.rpartition('.')[2]}.py": module for module in beside}
    return {f"file:{version}/{name}": Path(str(module.__file__)).read_bytes() for name, module in names.items()}
