"""`model_weights.ckpt`: one flat dictionary of tensors, written by `torch.save`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.checkpoints.torch_zip import StoredTensor, TorchZip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.tensors import Array, RowReader, TensorInfo
    from multimodal_builder.checkpoints.window import Window


class CkptSource:
    """Tensors of a state dictionary. What else is in it, as Transformer Engine's extra states, has no part."""

    def __init__(self, window: Window) -> None:
        """Read the pickle.

        Raises:
            ProductError: it is damaged, unsafe, or no dictionary of tensors.
        """
        self._zip = TorchZip(window)
        state = self._zip.load()
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise unreadable(window.at, "holds no dictionary of named tensors")
        tensors = [(name, value) for name, value in state.items() if isinstance(value, StoredTensor)]
        tensors.sort(key=lambda pair: self._zip.position(pair[1]))
        for name, tensor in tensors:
            tensor.check(f"{window.at}: {name}")
        self._tensors = dict(tensors)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors in the order of the file."""
        return {name: tensor.info for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Array:
        """Read one tensor."""
        return self._zip.read(self._tensors[name], self._at(name))

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor, unless its values lie in another order."""
        tensor, at = self._tensors[name], self._at(name)
        return (lambda rows, first: self._zip.read_rows(tensor, rows, first, at)) if tensor.contiguous else None

    def _at(self, name: str) -> str:
        return f"{self._zip.at}: {name}"
