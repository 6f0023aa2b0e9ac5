"""SALM's perception of transformers' parts: FastConformer encoder, modality adapter of the same kind, projection."""

from collections.abc import Sequence
from typing import Final

import torch
from tiny.sounds import MELS
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import ParakeetEncoder, ParakeetEncoderConfig

REDUCTION: Final = 8  # of the encoder, and again of the adapter
WIDTH: Final = 64
LAYERS: Final = 2
HEADS: Final = 4
EXPANSION: Final = 4
KERNEL: Final = 9
CHANNELS: Final = 32


def make_conformer(features: int) -> ParakeetEncoder:
    """A FastConformer with fresh weights; NeMo's xscaling is transformers' scale_input."""
    return ParakeetEncoder(
        ParakeetEncoderConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=EXPANSION * WIDTH,
            conv_kernel_size=KERNEL,
            subsampling_factor=REDUCTION,
            subsampling_conv_channels=CHANNELS,
            num_mel_bins=features,
            dropout=0.0,
            layerdrop=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
            scale_input=True,
            initializer_range=0.05,
        )
    )


def reduced(frames: int) -> int:
    """Frames behind one conformer."""
    return -(-frames // REDUCTION)


class Perception(nn.Module):
    """Mel frames of sounds, [frames, MELS] each, to rows of the language model: one per 64 frames."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encoder = make_conformer(MELS)
        self.adapter = make_conformer(WIDTH)
        self.projection = nn.Linear(WIDTH, hidden)

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        """The rows of all sounds, [rows, hidden]."""
        lengths = [len(each) for each in seen]
        states = pad_sequence(list(seen), batch_first=True)
        for conformer in (self.encoder, self.adapter):
            within = torch.arange(states.shape[1], device=states.device)
            mask = within[None] < torch.tensor(lengths, device=states.device)[:, None]
            states = conformer(states * mask[..., None], attention_mask=mask).last_hidden_state
            lengths = [reduced(length) for length in lengths]
        rows: Tensor = self.projection(torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)]))
        return rows
