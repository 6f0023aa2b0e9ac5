"""From log-mel frames to rows of prompt embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

from multimodal_modeling.pretrained import load_pretrained
from multimodal_modeling.projector import Projector
from multimodal_recipes.recipe import ADAPTER_DIR, AUDIO_DIR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel


class _Conformer(ParakeetEncoder):  # type: ignore[no-untyped-call] # transformers' __init_subclass__
    """NeMo's `ConformerEncoder`, which transformers knows by the name of the first model that it took from NeMo."""

    # Counts training steps; inference never reads it.
    _keys_to_ignore_on_load_missing = ["num_batches_tracked"]  # noqa: RUF012 (transformers' own declaration)


class AudioEncoder:
    """A speech encoder, a modality adapter of the same kind behind it, and a projector, loaded."""

    takes_any_length: Final = True

    def __init__(self, encoder: PreTrainedModel, adapter: PreTrainedModel, projector: Projector) -> None:
        self._encoder = encoder
        self._adapter = adapter
        self._projector = projector

    @classmethod
    def load(cls, model_dir: Path, *, device: torch.device) -> AudioEncoder:
        """Read `audio/`, `adapter/` and `projector/` of a canonical model.

        Raises:
            ProductError: a file is missing or contradicts another.
        """
        # Batch norms and masked scores suffer in half precision, and this part is small beside the language model.
        dtype = torch.float32
        encoder, adapter = (
            load_pretrained(_Conformer.from_pretrained, model_dir / folder, dtype=dtype, device=device)
            for folder in (AUDIO_DIR, ADAPTER_DIR)
        )
        return cls(encoder, adapter, Projector.load(model_dir, dtype=dtype, device=device))

    def encode(self, frames: Tensor) -> Tensor:
        """Encode sounds of one length.

        Args:
            frames: [items, frames, bands] float32, as the recipe's front end makes them; on any device.

        Returns:
            [items, rows, hidden] float32.
        """
        return torch.stack(self.encode_together(list(frames)))

    def arrange(self, features: Tensor) -> Tensor:
        """Put the features of one sound, [1, rows, hidden], in the order of the prompt: [rows, hidden]."""
        return features.flatten(0, 1)

    @torch.inference_mode()
    def encode_together(self, sounds: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Encode sounds of any lengths; each gives what it would give alone.

        Args:
            sounds: [frames, bands] float32 each; on any device.

        Returns:
            [rows, hidden] float32 each.
        """
        features = pad_sequence(list(sounds), batch_first=True).to(self._encoder.device)
        lengths = torch.tensor([len(sound) for sound in sounds], device=features.device)
        mask = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        for conformer in (self._encoder, self._adapter):
            output = conformer(input_features=features, attention_mask=mask)
            mask = output.attention_mask.bool()
            # Padding must be silence for the convolutions that come next.
            features = output.last_hidden_state * mask[..., None]
        rows = self._projector(features)
        return tuple(row[kept] for row, kept in zip(rows, mask, strict=True))
