"""Adapters of peft, added to the parameters of a model as they are written, whatever they are made from.

peft names layers as transformers does, so that the sum comes behind a mapping: the same folder fits a NeMo checkpoint,
whose fused weights were taken apart by then, and a folder of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.casts import cast
from multimodal_builder.lora import BLOCK
from multimodal_recipes.recipe import LLM_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multimodal_builder.checkpoints.peft import Change, PeftFolder
    from multimodal_builder.checkpoints.tensors import Array, TensorInfo, TensorSource
    from multimodal_builder.components import Component
    from multimodal_builder.mappings.base import Rule, Shape, Step

SPELLINGS: Final = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("llm.", ""),
)
"""Beginnings of names by the versions of transformers and by VILA, and what they become here."""
_WEIGHT: Final = ".weight"


@dataclass(frozen=True, slots=True)
class _Tuned:
    """A rule, and what is added to its results."""

    rule: Rule
    infos: tuple[TensorInfo, ...]
    """Of the results."""
    changes: tuple[Change | None, ...]
    """One for each result."""
    matrices: TensorSource

    @property
    def source(self) -> str:
        """The rule's pattern."""
        return self.rule.source

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Name the rule's results."""
        return self.rule.targets(info)

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Make them; a sum is computed in float32, and rounded once to the type of the weight."""
        parts = self.rule.apply(array)
        return tuple(
            part if change is None else self._sum(part.reshape(info.shape), info.dtype, change)
            for part, info, change in zip(parts, self.infos, self.changes, strict=True)
        )

    def _sum(self, weight: Array, dtype: str, change: Change) -> Array:
        first, second = self._wide(change.inward), self._wide(change.outward)
        left, right = (first.T, second.T) if change.transposed else (second, first)
        left = left * np.float32(change.scale)
        merged = np.empty_like(weight, order="C")
        for start in range(0, len(weight), BLOCK):
            rows = slice(start, start + BLOCK)
            total = cast(weight[rows], source=dtype, target="F32") + left[rows] @ right
            merged[rows] = cast(total, source="F32", target=dtype)
        return merged

    def _wide(self, name: str) -> Array:
        return cast(self.matrices.read(name), source=self.matrices.infos()[name].dtype, target="F32")


def tune(components: tuple[Component, ...], peft: PeftFolder | None) -> tuple[Component, ...]:
    """Add an adapter to the components whose layers it names.

    Raises:
        ProductError: it names a layer that the model does not have, or does not fit.
    """
    if peft is None:
        return components
    changes = {_plain(layer + _WEIGHT): layer for layer in peft.changes}
    used: set[str] = set()
    tuned = tuple(
        replace(
            component,
            mapped=replace(
                component.mapped,
                steps=tuple(_tune_step(step, component, peft, changes, used) for step in component.mapped.steps),
            ),
        )
        for component in components
    )
    if unused := [layer for layer in peft.changes if layer not in used]:
        raise _wrong(
            f"{peft.at}: {unused[0]}",
            f"the model has no such layer; {len(unused)} of {len(peft.changes)} are not its own",
            "use the adapter of this model",
        )
    return tuned


def _tune_step(step: Step, component: Component, peft: PeftFolder, layers: Mapping[str, str], used: set[str]) -> Step:
    found = tuple(_find(step, component, layers))
    if not any(found):
        return step
    changes = tuple(peft.changes[layer] if layer else None for layer in found)
    for layer, change, (name, info) in zip(found, changes, step.targets, strict=True):
        if change is not None and change.shape != info.shape:
            raise _wrong(
                f"{peft.at}: {layer}",
                f"changes {list(change.shape)}, but {name} is {list(info.shape)}",
                "use the adapter of this model",
            )
    used.update(layer for layer in found if layer)
    infos = tuple(info for _, info in step.targets)
    return replace(step, rule=_Tuned(step.rule, infos, changes, peft.tensors))


def _find(step: Step, component: Component, layers: Mapping[str, str]) -> Iterator[str | None]:
    """Name the layer that changes each result: by transformers' name of a language model's, or by the folder's name."""
    alone = layers.get(_plain(step.source)) if len(step.targets) == 1 else None
    for name, _ in step.targets:
        yield (layers.get(name) if component.folder == LLM_DIR else None) or alone


def _plain(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in SPELLINGS if name.startswith(old)), name)


def _wrong(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.CHECKPOINT_WEIGHTS, at=at, problem=problem, remedy=remedy)
