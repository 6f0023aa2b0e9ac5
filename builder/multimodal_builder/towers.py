"""A vision tower: where its weights and files are, and what becomes of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import find_folder
from multimodal_builder.mappings import nemo_clip, vit
from multimodal_builder.mappings.base import Mapped, Rule, interpret
from multimodal_builder.nemo_clip import clip_config, open_clip
from multimodal_builder.preprocessor import (
    canonical_preprocessor,
    clip_preprocessing,
    nemo_preprocessing,
    read_preprocessing,
)
from multimodal_builder.tower_config import TowerConfig, read_tower_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.checkpoint import Checkpoint
    from multimodal_builder.checkpoints.config import ClipSection, ModelConfig
    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.checkpoints.tensors import TensorInfo, TensorSource
    from multimodal_builder.mappings.base import Shape
    from multimodal_builder.tower_config import ClipConfig
    from multimodal_recipes.recipe import ImagePreprocessing

ARCHIVE_PREFIX: Final = "model.embedding.word_embeddings.vision_encoder."
"""In front of a trained tower's names in the checkpoint."""


_KEY: Final = "mm_cfg.vision_encoder.from_pretrained"


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
    opened: ExitStack
    """What was opened for the tower alone."""

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
        self.opened.close()


def find_tower(checkpoint: Checkpoint[ModelConfig], hub: Hub | None = None) -> Tower:
    """Find a checkpoint's tower: its files where the configuration says, its weights in the checkpoint if trained.

    Raises:
        ProductError: there are no files, or they are no tower's.
    """
    vision = checkpoint.config.mm_cfg.vision_encoder
    with ExitStack() as opened:
        if vision.megatron is not None:
            return _megatron(checkpoint, vision.megatron)
        return _hugging_face(checkpoint, hub, opened) if vision.from_hf else _nemo(checkpoint, opened)


def _hugging_face(checkpoint: Checkpoint[ModelConfig], hub: Hub | None, opened: ExitStack) -> Tower:
    folder = find_folder(checkpoint.config.mm_cfg.vision_encoder.from_pretrained, checkpoint.path, hub, key=_KEY)
    opened.callback(folder.close)
    config = read_tower_config(folder)
    preprocessing = read_preprocessing(folder, config, checkpoint.config.data.image_aspect_ratio)
    trained = _trained(checkpoint)
    source = checkpoint.tensors if trained else folder.tensors()
    infos = trained or source.infos()
    rules = vit.rules(config, infos, before=ARCHIVE_PREFIX if trained else "")
    return Tower(config, preprocessing, source, infos, rules, bool(trained), opened.pop_all())


def _nemo(checkpoint: Checkpoint[ModelConfig], opened: ExitStack) -> Tower:
    """Find a `MegatronCLIPModel`, whose archive has the configuration even where the weights are in the checkpoint."""
    mm_cfg = checkpoint.config.mm_cfg
    clip = opened.enter_context(open_clip(mm_cfg.vision_encoder.from_pretrained, checkpoint.path, key=_KEY))
    config = clip_config(clip.config.vision, at=f"{clip.config_at}: vision")
    _check_crop(checkpoint, config)
    _check_layer(checkpoint)
    trained = _trained(checkpoint)
    legacy = clip.config.vision.megatron_legacy
    _check_ranks(checkpoint, legacy=legacy and bool(trained))
    before = ARCHIVE_PREFIX if trained else nemo_clip.ARCHIVE_PREFIX
    base = checkpoint.tensors if trained else clip.tensors
    source = nemo_clip.FoldedSource(base, trained or base.infos(), before=before, class_tokens=config.class_tokens)
    rules = nemo_clip.nemo1_rules(config, before=before, legacy=legacy)
    preprocessing = nemo_preprocessing(config, checkpoint.config.data.image_aspect_ratio)
    return Tower(config, preprocessing, source, source.infos(), rules, bool(trained), opened.pop_all())


def _check_ranks(checkpoint: Checkpoint[ModelConfig], *, legacy: bool) -> None:
    """Require that one rank trained a tower whose queries, keys and values lie apart.

    Raises:
        ProductError: several did; their slices were put together before the tower's configuration was known.
    """
    ranks = checkpoint.config.tensor_model_parallel_size
    if legacy and ranks > 1:
        raise config_error(
            f"{checkpoint.config_at}: tensor_model_parallel_size",
            f"is {ranks}, and the trained tower's attention has megatron_legacy true",
            "save the checkpoint with tensor_model_parallel_size 1",
        )


def _megatron(checkpoint: Checkpoint[ModelConfig], section: ClipSection) -> Tower:
    """Find a `CLIPViTModel`, of which NeMo 2 keeps all in the checkpoint."""
    config = clip_config(section, at=f"{checkpoint.config_at}: vision_transformer_config")
    _check_layer(checkpoint)
    infos = _trained(checkpoint)
    rules = nemo_clip.megatron_rules(config, infos, before=ARCHIVE_PREFIX)
    return Tower(config, clip_preprocessing(config), checkpoint.tensors, infos, rules, trained=True, opened=ExitStack())


def _check_crop(checkpoint: Checkpoint[ModelConfig], config: ClipConfig) -> None:
    """Require pictures of the tower's size.

    Raises:
        ProductError: NeMo would have stretched the tower's positions.
    """
    crop = checkpoint.config.mm_cfg.crop_size
    if crop != (config.image_size, config.image_size):
        raise config_error(
            f"{checkpoint.config_at}: mm_cfg.crop_size",
            f"pictures of {crop} pixels for a tower that takes {config.image_size}",
            "use a checkpoint whose pictures have the tower's size",
        )


def _check_layer(checkpoint: Checkpoint[ModelConfig]) -> None:
    """Require a layer counted from the end.

    Raises:
        ProductError: NeMo's own towers give all their layers then, whatever the number.
    """
    layer = checkpoint.config.mm_cfg.vision_encoder.vision_select_layer
    if layer >= 0:
        raise config_error(
            f"{checkpoint.config_at}: mm_cfg.vision_encoder.vision_select_layer",
            f"is {layer}, which towers of NeMo's own do not count from the first layer",
            "use a checkpoint that was trained with a layer counted from the end, as -2",
        )


def _trained(checkpoint: Checkpoint[ModelConfig]) -> dict[str, TensorInfo]:
    return {name: info for name, info in checkpoint.tensors.infos().items() if name.startswith(ARCHIVE_PREFIX)}
