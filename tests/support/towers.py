"""Tiny vision towers of transformers with random weights, and the folders in which people have them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

WIDTH: Final = 64
PATCH: Final = 8
_VISION: Final = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": PATCH,
}
_TEXT: Final = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}


def make_clip(image_size: int) -> CLIPVisionModel:
    """A tower; an odd number of patches per edge where `image_size` is an odd multiple of `PATCH`."""
    return _shaken(CLIPVisionModel(CLIPVisionConfig(**_VISION, image_size=image_size)))


def make_siglip(image_size: int) -> SiglipVisionModel:
    """A tower with its pooling head, as every SigLIP has it."""
    return _shaken(SiglipVisionModel(SiglipVisionConfig(**_VISION, image_size=image_size)))


def names_of(tower: nn.Module) -> dict[str, Tensor]:
    """The tower's tensors under the names that the repositories and NeMo use, with `vision_model.`; in bfloat16."""
    return {f"vision_model.{name}": tensor.bfloat16().contiguous() for name, tensor in tower.state_dict().items()}


def whole(tower: CLIPVisionModel | SiglipVisionModel) -> CLIPModel | SiglipModel:
    """The model that a tower is half of."""
    model: CLIPModel | SiglipModel
    if isinstance(tower, CLIPVisionModel):
        model = CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**_TEXT), vision_config=tower.config))
    else:
        model = SiglipModel(SiglipConfig(text_config=SiglipTextConfig(**_TEXT), vision_config=tower.config))
    state = {name.removeprefix("vision_model."): tensor for name, tensor in names_of(tower).items()}
    model.vision_model.load_state_dict(state)
    return model


def write_folder(folder: Path, tower: CLIPVisionModel | SiglipVisionModel, form: str) -> None:
    """Write a tower's repository.

    Args:
        folder: Replaced where it is there.
        tower: The weights.
        form: `tower` (as transformers 5 writes it), `whole` (tower and text), `shards`, `old` (the names with
            `vision_model.`, the position numbers that older versions stored) or `bin` (the same, pickled).
    """
    shutil.rmtree(folder, ignore_errors=True)
    if form in {"whole", "shards"}:
        whole(tower).save_pretrained(folder, max_shard_size="100KB" if form == "shards" else "1GB")
    else:
        tower.save_pretrained(folder)
    _processor(tower).save_pretrained(folder)
    if form in {"old", "bin"}:
        positions = torch.arange(tower.config.image_size // PATCH)[None]
        state = names_of(tower) | {"vision_model.embeddings.position_ids": positions}
        (folder / "model.safetensors").unlink()
        if form == "old":
            save_file(state, folder / "model.safetensors")
        else:
            torch.save(state, folder / "pytorch_model.bin")


def _processor(tower: CLIPVisionModel | SiglipVisionModel) -> Any:
    edge = tower.config.image_size
    square = {"height": edge, "width": edge}
    if isinstance(tower, CLIPVisionModel):
        return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=square)
    return SiglipImageProcessorPil(size=square)


def _shaken(tower: Any) -> Any:
    """Make every parameter count: fresh norms are 1 and 0, fresh biases 0. All values are bfloat16's."""
    generator = torch.Generator().manual_seed(5)
    for parameter in tower.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data = (parameter.data + noise).bfloat16().float()
    return tower.float().eval()
