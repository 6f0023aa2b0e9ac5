"""Frozen towers of vision: what a projector gets to see of pictures and of videos' frames; and the tiny SigLIP."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import learning, pictures
from tiny.learning import Progress
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

HERE: Final = Path(__file__).resolve().parent
CLIP: Final = HERE / "neva" / "clip"
SIGLIP: Final = HERE / "siglip"
WEIGHTS: Final = "model.safetensors"

SIZE: Final = 48
PATCH: Final = 8
WIDTH: Final = 64
SIDE: Final = SIZE // PATCH
PATCHES: Final = SIDE**2
LAYER: Final = -2  # NeMo's vision_select_layer
HALF: Final = (0.5, 0.5, 0.5)
CHUNK: Final = 400  # frames at a time
SEEN_DTYPE: Final = torch.float16
"""Of features that wait for training: half the memory, and far finer than what differs between two pictures."""

Processor = CLIPImageProcessorPil | SiglipImageProcessorPil


def expand_to_square(picture: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Centre a picture on a square of the mean colour, as NeMo's `image_aspect_ratio: pad` does."""
    width, height = picture.size
    side = max(width, height)
    if width == height:
        return picture
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


@dataclass(frozen=True, slots=True)
class Eye:
    """A tower with its preprocessing."""

    tower: nn.Module
    processor: Processor
    pad: bool
    class_tokens: int

    @classmethod
    def clip(cls, *, pad: bool) -> "Eye":
        """The trained tower of the tiny NeVA, frozen."""
        tower = CLIPVisionModel(CLIPVisionConfig.from_pretrained(CLIP))
        _load(tower, CLIP)
        return cls(tower, CLIPImageProcessorPil.from_pretrained(CLIP), pad, class_tokens=1)

    @classmethod
    def siglip(cls, *, pad: bool) -> "Eye":
        """The trained tiny SigLIP, frozen."""
        tower = SiglipVisionModel(SiglipVisionConfig.from_pretrained(SIGLIP))
        _load(tower, SIGLIP)
        return cls(tower, siglip_processor(), pad, class_tokens=0)

    def pixels(self, frames: Sequence[Image.Image]) -> Tensor:
        """Preprocess pictures: [pictures, 3, SIZE, SIZE]."""
        if self.pad:
            frames = [expand_to_square(frame, self.processor.image_mean) for frame in frames]
        pixels: Tensor = self.processor(list(frames), return_tensors="pt")["pixel_values"]
        return pixels

    def features(self, pixels: Tensor) -> Tensor:
        """What the projector takes, [pictures, patches, WIDTH]: hidden state LAYER without class tokens."""
        states: tuple[Tensor, ...] = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        return states[LAYER][:, self.class_tokens :]

    @torch.no_grad()
    def see(self, media: Sequence[Sequence[Image.Image]]) -> list[Tensor]:
        """Features of videos (or of pictures, as videos of one frame): [frames, patches, WIDTH] each."""
        device = next(self.tower.parameters()).device
        flat = [frame for frames in media for frame in frames]
        parts = [
            self.features(self.pixels(flat[start : start + CHUNK]).to(device)).to(SEEN_DTYPE)
            for start in range(0, len(flat), CHUNK)
        ]
        return list(torch.cat(parts).split([len(frames) for frames in media]))


def _load(tower: nn.Module, folder: Path) -> None:
    """Set every weight of a tower, as float32, and freeze it."""
    own = tower.state_dict()
    prefix = "" if next(iter(own)).startswith("vision_model.") else "vision_model."
    stored = load_file(folder / WEIGHTS)
    tower.load_state_dict({name.removeprefix(prefix): value.float() for name, value in stored.items()})
    tower.requires_grad_(requires_grad=False).eval()


def state(tower: nn.Module) -> dict[str, Tensor]:
    """A tower's tensors under the names of its repository: all start with `vision_model.`."""
    own = {name.removeprefix("vision_model."): value for name, value in tower.state_dict().items()}
    return {f"vision_model.{name}": value.cpu() for name, value in own.items()}


def siglip_processor() -> SiglipImageProcessorPil:
    """SigLIP's preprocessing: both edges to SIZE, whatever the aspect, bicubic, mean and deviation 0.5."""
    return SiglipImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, resample=3, image_mean=list(HALF), image_std=list(HALF)
    )


def make_siglip() -> SiglipVisionModel:
    """A SigLIP tower of the tiny sizes with fresh weights, without the head, as in VILA's `vision_tower` folders."""
    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
            vision_use_head=False,
        )
    )


def train_siglip(amount: int, steps: int, seed: int, device: torch.device, progress: Progress) -> SiglipVisionModel:
    """Teach a SigLIP what stands in each cell of a picture, squashed or padded to a square; then round, freeze it."""
    rng = random.Random(seed)
    tower = make_siglip()
    nn.Module.to(tower, device)
    drawn = [next(source) for source in [pictures.scenes(seed, held_out=False)] for _ in range(amount)]
    eyes = [Eye(tower, siglip_processor(), pad, 0) for pad in (False, True)]
    # Near squares, or cells would not lie where the labels say.
    painted = [pictures.paint(scene, rng, widest=120) for scene in drawn]
    pixels = torch.cat([eyes[number % 2].pixels([picture]) for number, picture in enumerate(painted)]).to(device)
    labels = learning.cell_labels(drawn).to(device)
    head = nn.Linear(PATCHES // learning.CELLS * WIDTH, sum(learning.CELL_LABELS)).to(device)
    for step in learning.optimise([*tower.parameters(), *head.parameters()], 2e-3, steps):
        chosen = torch.randint(amount, (64,))
        guess = head(learning.by_cell(eyes[0].features(pixels[chosen])))
        loss = learning.cell_loss(guess, labels[chosen])
        loss.backward()
        progress.step("tower", step, steps, loss)
    learning.round_to_bfloat16(tower)
    tower.requires_grad_(requires_grad=False).eval()
    return tower


def save_siglip(folder: Path, tower: SiglipVisionModel) -> None:
    """Write the tower, in bfloat16, as a repository of a `SiglipVisionModel` holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    siglip_processor().save_pretrained(folder)
    tower.config.save_pretrained(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["SiglipVisionModel"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in state(tower).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets only the owner read; a server runs as another user
