"""The folders of a canonical model: which weights go into each, and which files stand beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints.tensors import TensorInfo
from multimodal_builder.mappings import projector
from multimodal_builder.mappings.base import Mapped, interpret
from multimodal_builder.streaming import pieces_of
from multimodal_builder.towers import ARCHIVE_PREFIX as TOWER_PREFIX
from multimodal_recipes.recipe import LLM_DIR, PROJECTOR_DIR, VISION_DIR, ProjectorConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from multimodal_builder.checkpoints.checkpoint import Checkpoint, Sources
    from multimodal_builder.checkpoints.config import ModelConfig, TunedConfig
    from multimodal_builder.checkpoints.tensors import TensorSource
    from multimodal_builder.mappings.language_model import JsonObject, LanguageModel
    from multimodal_builder.streaming import Piece
    from multimodal_builder.tokenizer import ConvertedTokenizer
    from multimodal_builder.towers import Tower


@dataclass(frozen=True, slots=True)
class Component:
    """One folder of the canonical model."""

    folder: str
    source: TensorSource
    mapped: Mapped
    files: Mapping[str, JsonObject | bytes]
    """Beside the weights; objects are written as JSON."""

    def tensors(self, dtype: str | None) -> list[tuple[str, TensorInfo]]:
        """List what is written, in the order of `values`; `dtype` None keeps the type of each."""
        targets = (target for step in self.mapped.steps for target in step.targets)
        return [(name, TensorInfo(dtype or info.dtype, info.shape)) for name, info in targets]

    def values(self, dtype: str | None, on_read: Callable[[int], None]) -> Iterator[Iterator[Piece]]:
        """Read, convert and give one tensor after the other, each as pieces that are put to their place in order.

        Args:
            dtype: Type of all weights; None keeps that of each.
            on_read: Told of bytes that were read.
        """
        return pieces_of(self.source, self.mapped.steps, dtype=dtype, on_read=on_read)

    @property
    def dtype(self) -> str:
        """Type of the weights as the checkpoint stores them; of the largest part where they are mixed."""
        sizes: dict[str, int] = {}
        for step in self.mapped.steps:
            for _, info in step.targets:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
        return max(sizes, key=lambda dtype: sizes[dtype], default="F32")


LANGUAGE_PREFIXES: Final = ("model.embedding.", "model.decoder.", "model.output_layer.")
"""Of the tensors of a language model, and of the components inside its embedding."""


VISION_PREFIXES: Final = (TOWER_PREFIX, projector.ARCHIVE_PREFIX)
"""Of the tensors of the components of a model that sees."""


def is_language(name: str, media: tuple[str, ...] = VISION_PREFIXES) -> bool:
    """Tell whether a tensor of a checkpoint belongs to no other component than the language model."""
    return not name.startswith(media)


def strays(sources: Sources[TunedConfig], media: tuple[str, ...]) -> list[str]:
    """List tensors of a visual checkpoint that no component looks at because the language model has its own."""
    names = sources.visual.tensors.infos() if sources.apart else ()
    return [name for name in names if not name.startswith((*media, *LANGUAGE_PREFIXES))]


def llm_component(
    sources: Sources[TunedConfig],
    language_model: LanguageModel,
    tokenizer: ConvertedTokenizer,
    media: tuple[str, ...] = VISION_PREFIXES,
) -> Component:
    """Plan `llm/`: everything that belongs to no other component.

    A visual checkpoint beside one of the language model may hold a language model too; that one is not taken.
    """
    checkpoint = sources.language
    infos = {name: info for name, info in checkpoint.tensors.infos().items() if is_language(name, media)}
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    return Component(
        LLM_DIR,
        checkpoint.tensors,
        interpret(language_model.rules, infos, language_model.parameters),
        {
            "config.json": language_model.config | ids,
            "generation_config.json": ids | {"do_sample": False},  # greedy: NeMo's default on the wire
            **tokenizer.files,
        },
    )


def vision_component(tower: Tower) -> Component:
    """Plan `vision/`."""
    files = {"config.json": tower.canonical_config(), "preprocessor_config.json": tower.canonical_preprocessor()}
    return Component(VISION_DIR, tower.source, tower.mapped(), files)


def projector_component(checkpoint: Checkpoint[ModelConfig], config: ProjectorConfig) -> Component:
    """Plan `projector/`."""
    infos = _starting(checkpoint.tensors.infos(), projector.ARCHIVE_PREFIX)
    return Component(
        PROJECTOR_DIR,
        checkpoint.tensors,
        interpret(projector.rules(config), infos, projector.parameters(config)),
        {"config.json": config.model_dump(mode="json", by_alias=True)},
    )


def _starting(infos: Mapping[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    return {name: info for name, info in infos.items() if name.startswith(prefix)}
