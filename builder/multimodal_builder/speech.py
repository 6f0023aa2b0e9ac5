"""The hearing half of a SALM model: its front end, encoder, modality adapter and projector."""

from __future__ import annotations

import re
from math import ceil, log2
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.casts import cast
from multimodal_builder.components import Component
from multimodal_builder.mappings import conformer, projector
from multimodal_builder.mappings.base import Ignore, Rename, interpret
from multimodal_recipes.audio import mel_bank
from multimodal_recipes.recipe import (
    ADAPTER_DIR,
    AUDIO_DIR,
    PROJECTOR_DIR,
    AudioRecipe,
    EdgePadding,
    MelFrontEnd,
    ProjectorConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimodal_builder.checkpoints.checkpoint import Checkpoint
    from multimodal_builder.checkpoints.speech_config import ConformerSection, PerceptionSection, SpeechConfig
    from multimodal_builder.checkpoints.tensors import Array, TensorSource
    from multimodal_builder.mappings.base import Rule, Shape

PREFIX: Final = "perception."
"""In front of all names in a whole archive; NeMo's script leaves it off when it splits one."""

ZERO_PADDED: Final = (2, 5)
"""The first version of NeMo that pads with zeros; checkpoints without a version are older."""

TOLERANCE: Final = 2.5e-3
"""Of the stored window and bands, relative to the largest value: what bfloat16 makes of them. Other windows and
scales differ by more."""


def audio_recipe(config: SpeechConfig) -> AudioRecipe:
    """Describe how sounds become rows."""
    perception = config.perception
    reduction = perception.encoder.subsampling_factor * perception.modality_adapter.subsampling_factor
    return AudioRecipe(mel=_front_end(config), frames_per_row=reduction)


def _front_end(config: SpeechConfig) -> MelFrontEnd:
    section = config.perception.preprocessor
    window = int(section.window_size * section.sample_rate)
    version = tuple(map(int, re.findall(r"\d+", config.nemo_version)[:2]))
    return MelFrontEnd(
        sample_rate=section.sample_rate,
        window=window,
        hop=int(section.window_stride * section.sample_rate),
        fft=section.n_fft or 2 ** ceil(log2(window)),
        bands=section.features,
        low=section.lowfreq,
        high=section.highfreq or section.sample_rate / 2,
        preemphasis=section.preemph or 0,
        log_guard=section.log_zero_guard_value,
        padding=EdgePadding.ZERO if version >= ZERO_PADDED else EdgePadding.REFLECT,
    )


def speech_components(checkpoint: Checkpoint[SpeechConfig], before: str) -> tuple[Component, ...]:
    """Plan `audio/`, `adapter/` and `projector/`.

    Args:
        checkpoint: That holds them.
        before: What stands in front of all their names.

    Raises:
        ProductError: window or bands in the checkpoint are not those that its configuration gives.
    """
    source, perception = checkpoint.tensors, checkpoint.config.perception
    names = source.infos()
    check_featurizer(source, before, _front_end(checkpoint.config), checkpoint.at)
    adapter, head = f"{before}modality_adapter.", f"{before}proj."
    others = [name for name in names if name.startswith(before) and not name.startswith((adapter, head))]
    ignored = (Ignore(f"{before}preprocessor.featurizer.*", why="computed; compared with the configuration"),)
    return (
        _conformer(source, AUDIO_DIR, f"{before}encoder.", perception.encoder, others, ignored),
        _conformer(source, ADAPTER_DIR, adapter, perception.modality_adapter, _starting(names, adapter)),
        _projector(source, head, perception, _starting(names, head)),
    )


def _conformer(
    source: TensorSource,
    folder: str,
    before: str,
    config: ConformerSection,
    names: list[str],
    ignored: tuple[Rule, ...] = (),
) -> Component:
    rules = (*conformer.rules(before, config), *ignored)
    return _component(source, folder, rules, conformer.parameters(config), names, conformer.description(config))


def _projector(source: TensorSource, before: str, perception: PerceptionSection, names: list[str]) -> Component:
    width = perception.modality_adapter.d_model
    config = ProjectorConfig(kind="linear", input_size=width, hidden_size=perception.output_dim)
    rules = tuple(Rename(f"{before}{kind}", f"{projector.PREFIX}{kind}") for kind in ("weight", "bias"))
    description = config.model_dump(mode="json", by_alias=True)
    return _component(source, PROJECTOR_DIR, rules, projector.parameters(config), names, description)


def _component(
    source: TensorSource,
    folder: str,
    rules: tuple[Rule, ...],
    parameters: dict[str, Shape],
    names: list[str],
    description: dict[str, object],
) -> Component:
    infos = source.infos()
    mapped = interpret(rules, {name: infos[name] for name in names}, parameters)
    return Component(folder, source, mapped, {"config.json": description})


def _starting(names: Iterable[str], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def check_featurizer(source: TensorSource, before: str, mel: MelFrontEnd, at: str) -> None:
    """Compare the window and the bands that lie in a checkpoint with those that its configuration gives.

    Raises:
        ProductError: they differ.
    """
    computed = {"window": np.hanning(mel.window), "fb": mel_bank(mel)[None]}
    for key, ours in computed.items():
        name = f"{before}preprocessor.featurizer.{key}"
        info = source.infos().get(name)
        if info is not None and _differ(cast(source.read(name), source=info.dtype, target="F32"), ours):
            raise ProductError(
                Reason.CHECKPOINT_CONFIG,
                at=f"{at}: {name}",
                problem="it is not what perception.preprocessor in the configuration gives",
                remedy="use the model_config.yaml that belongs to the weights",
            )


def _differ(stored: Array, computed: Array) -> bool:
    return stored.shape != computed.shape or bool(np.abs(stored - computed).max() > TOLERANCE * computed.max())
