"""A vision tower: where its weights and files are, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multimodal_builder.checkpoints.huggingface import find_folder
from multimodal_builder.mappings import vit
from multimodal_builder.mappings.base import Mapped, Rule, interpret
from multimodal_builder.preprocessor import canonical_preprocessor, read_preprocessing
from multimodal_builder.tower_config import TowerConfig, read_tower_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.checkpoint import Checkpoint
    from multimodal_builder.checkpoints.config import ModelConfig
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
    from multimodal_builder.checkpoints.tensors import TensorInfo, TensorSource
    from multimodal_builder.mappings.base import Shape
    from multimodal_recipes.recipe import ImagePreprocessing

ARCHIVE_PREFIX = "model.embedding.word_embeddings.vision_encoder."
"""In front of a trained tower's names in the checkpoint."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A tower, read from headers."""

    config: TowerConfig
    preprocessing: ImagePreprocessing
    source: TensorSource
    """Holds the weights."""
    infos: Mapping[str, TensorInfo]
    """The tensors of `source` that are the tower's."""
    rules: tuple[Rule, ...]
    trained: bool
    """Whether it was trained, and so lies in the checkpoint."""
    folder: HuggingFaceFolder

    @property
    def hidden_size(self) -> int:
        """Width of a token."""
        return self.config.hidden_size

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return self.config.patches

    @property
    def class_tokens(self) -> int:
        """Tokens in front of the patches."""
        return self.config.class_tokens

    @property
    def parameters(self) -> dict[str, Shape]:
        """Names and shapes of the canonical model."""
        return vit.parameters(self.config)

    def mapped(self) -> Mapped:
        """Match weights and parameters."""
        return interpret(self.rules, self.infos, self.parameters)

    def canonical_config(self) -> dict[str, Any]:
        """Give `vision/config.json`."""
        return self.config.canonical()

    def canonical_preprocessor(self) -> dict[str, Any]:
        """Give `vision/preprocessor_config.json`."""
        return canonical_preprocessor(self.config, self.preprocessing)

    def close(self) -> None:
        """Close the files that were opened for the tower alone."""
        self.folder.close()


def find_tower(checkpoint: Checkpoint[ModelConfig]) -> Tower:
    """Find a checkpoint's tower: its files in a folder, its weights in the checkpoint when they are there.

    Raises:
        ProductError: there is no folder, or it is no tower's.
    """
    vision = checkpoint.config.mm_cfg.vision_encoder
    folder = find_folder(vision.from_pretrained, checkpoint.path, key="mm_cfg.vision_encoder.from_pretrained")
    config = read_tower_config(folder)
    preprocessing = read_preprocessing(folder, config, checkpoint.config.data.image_aspect_ratio)
    stored = checkpoint.tensors.infos().items()
    trained = {name: info for name, info in stored if name.startswith(ARCHIVE_PREFIX)}
    source = checkpoint.tensors if trained else folder.tensors()
    infos = trained or source.infos()
    rules = vit.rules(config, infos, before=ARCHIVE_PREFIX if trained else "")
    return Tower(config, preprocessing, source, infos, rules, bool(trained), folder)
