"""Rules of a mapping, and the interpreter that makes steps and two difference lists of a checkpoint's index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.tensors import CARRIERS, FLOATS, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multimodal_builder.checkpoints.tensors import Array

Shape = tuple[int, ...]

NUMBERS: Final = ("n", "e")
"""What may stand in braces in a name: a layer's number, an expert's."""


class Rule(Protocol):
    """What becomes of the tensors whose names match a pattern; `{n}` in it is a layer's number, `{e}` an expert's."""

    @property
    def source(self) -> str:
        """The pattern."""

    def targets(self, info: TensorInfo, /) -> tuple[tuple[str, Shape], ...]:
        """Name what is made of one tensor, in the form `{n}` and `{e}` may still stand in, with shapes.

        Raises:
            ValueError: the tensor's shape does not allow it.
        """

    def apply(self, array: Array, /) -> tuple[Array, ...]:
        """Make it.

        Returns:
            One array for each target, whose values in C order are the target's; views, with any strides and any way
            to split the target's axes, save a copy: the writer copies piece by piece.
        """


@dataclass(frozen=True, slots=True)
class Rename:
    """The same values under another name."""

    source: str
    target: str

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Keep the shape."""
        return ((self.target, info.shape),)

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Keep the values."""
        return (array,)


@dataclass(frozen=True, slots=True)
class Offset:
    """The values and a number: norms are stored as the factor itself by some models, as the factor less one by others.

    The sum is computed in float32 and rounded once to the tensor's type.
    """

    source: str
    target: str
    by: float

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Keep the shape."""
        return ((self.target, info.shape),)

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Add."""
        dtype = next(name for name in FLOATS if CARRIERS[name] == array.dtype)
        total = cast(array, source=dtype, target="F32") + np.float32(self.by)
        return (cast(total, source="F32", target=dtype),)


@dataclass(frozen=True, slots=True)
class Transpose:
    """The same values, rows for columns; a bias stays what it is."""

    source: str
    target: str

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Turn the shape round."""
        return ((self.target, info.shape[::-1]),)

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Turn the values round."""
        return (array.T,)


@dataclass(frozen=True, slots=True)
class SplitQkv:
    """Megatron's fused attention input: rows per group are [the group's queries, its key, its value]."""

    source: str
    query: str
    key: str
    value: str
    heads: int
    groups: int

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Share the rows out."""
        rows, *rest = info.shape
        size, left = divmod(rows, self.heads + 2 * self.groups)
        if left or self.heads % self.groups:
            raise ValueError(f"{rows} rows are no whole heads of {self.heads} queries in {self.groups} groups")
        return (
            (self.query, (self.heads * size, *rest)),
            (self.key, (self.groups * size, *rest)),
            (self.value, (self.groups * size, *rest)),
        )

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Take the groups apart."""
        rest = array.shape[1:]
        queries = self.heads // self.groups
        grouped = array.reshape(self.groups, queries + 2, -1, *rest)
        return grouped[:, :queries], grouped[:, queries], grouped[:, queries + 1]


@dataclass(frozen=True, slots=True)
class TransposeQkv:
    """Megatron's fused attention input as GPT-2 has it: all queries, all keys, all values, and rows for columns."""

    source: str
    target: str
    heads: int

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Turn the shape round."""
        SplitQkv(self.source, query="q", key="k", value="v", heads=self.heads, groups=self.heads).targets(info)
        return ((self.target, info.shape[::-1]),)

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Take the heads apart, and put the parts side by side."""
        parts = array.reshape(self.heads, len("qkv"), -1, *array.shape[1:]).swapaxes(0, 1)
        return (parts if array.ndim == 1 else np.moveaxis(parts, -1, 0),)


@dataclass(frozen=True, slots=True)
class SplitGated:
    """Megatron's gated first layer: the rows that go through the activation, then the linear ones."""

    source: str
    gate: str
    up: str

    def targets(self, info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Halve the rows."""
        rows, *rest = info.shape
        if rows % 2:
            raise ValueError(f"{rows} rows are no two halves")
        return ((self.gate, (rows // 2, *rest)), (self.up, (rows // 2, *rest)))

    def apply(self, array: Array) -> tuple[Array, ...]:
        """Halve."""
        half = array.shape[0] // 2
        return array[:half], array[half:]


MOVES_ROWS: Final = (Rename, SplitQkv, SplitGated)
"""Rules whose results are whole rows of the tensor, each in one result and once: given the rows' numbers as a tensor,
they say which."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """Tensors that are not taken over; `*` stands for anything."""

    source: str
    why: str

    def targets(self, _info: TensorInfo) -> tuple[tuple[str, Shape], ...]:
        """Make nothing."""
        return ()

    def apply(self, _array: Array) -> tuple[Array, ...]:
        """Make nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class Step:
    """Read one tensor, write what it becomes."""

    source: str
    targets: tuple[tuple[str, TensorInfo], ...]
    rule: Rule


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a mapping makes of a checkpoint's index."""

    steps: tuple[Step, ...]
    """In the order of the checkpoint's tensors, so that reading it moves forward."""
    unknown: tuple[str, ...]
    """Tensors that no rule takes."""
    missing: tuple[str, ...]
    """Parameters that no tensor sets."""
    wrong: tuple[str, ...]
    """Tensors whose shape or type does not fit, or that set a parameter twice; as sentences."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are written."""
        return sum(info.nbytes for step in self.steps for _, info in step.targets)


def interpret(rules: tuple[Rule, ...], infos: Mapping[str, TensorInfo], wanted: Mapping[str, Shape]) -> Mapped:
    """Match a checkpoint's tensors with rules and with the parameters of a model.

    Args:
        rules: The first one whose pattern matches a name takes the tensor.
        infos: The checkpoint's tensors.
        wanted: Names and shapes of all parameters of the model.

    Returns:
        Steps, and all differences at once.
    """
    compiled = [(pattern(rule.source), rule) for rule in rules]
    steps: list[Step] = []
    unknown: list[str] = []
    wrong: list[str] = []
    set_by: dict[str, str] = {}
    for name, info in infos.items():
        matched = next(((match, rule) for regex, rule in compiled if (match := regex.fullmatch(name))), None)
        if matched is None:
            unknown.append(name)
            continue
        match, rule = matched
        try:
            step = Step(name, tuple(_named(rule.targets(info), match, info.dtype)), rule)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
            continue
        wrong += _wrong(step, wanted, set_by)
        set_by |= {target: name for target, _ in step.targets}
        if step.targets:
            steps.append(step)
    missing = tuple(name for name in wanted if name not in set_by)
    return Mapped(tuple(steps), tuple(unknown), missing, tuple(wrong))


def parameters_of(rules: tuple[Rule, ...], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Name everything that rules make of a whole model.

    Args:
        rules: From the checkpoint's names to the model's.
        shapes: All tensors of a checkpoint of the model, each under one spelling.
    """
    mapped = interpret(rules, {name: TensorInfo("F32", shape) for name, shape in shapes.items()}, {})
    return {target: info.shape for step in mapped.steps for target, info in step.targets}


def pattern(source: str) -> re.Pattern[str]:
    """Compile a rule's pattern."""
    escaped = re.escape(source).replace(re.escape("*"), ".*")
    for number in NUMBERS:
        escaped = escaped.replace(re.escape(f"{{{number}}}"), f"(?P<{number}>0|[1-9][0-9]*)")
    return re.compile(escaped)


def per_layer(shapes: Mapping[str, Shape], layers: int) -> Iterator[tuple[str, Shape]]:
    """Write out `{n}` for every layer; names without it stay as they are."""
    for name, shape in shapes.items():
        if "{n}" in name:
            yield from ((name.replace("{n}", str(layer)), shape) for layer in range(layers))
        else:
            yield name, shape


def _named(
    targets: tuple[tuple[str, Shape], ...], match: re.Match[str], dtype: str
) -> Iterator[tuple[str, TensorInfo]]:
    for name, shape in targets:
        for number, value in match.groupdict().items():
            name = name.replace(f"{{{number}}}", value)  # noqa: PLW2901
        yield name, TensorInfo(dtype, shape)


def _wrong(step: Step, wanted: Mapping[str, Shape], set_by: Mapping[str, str]) -> Iterator[str]:
    for target, info in step.targets:
        if target in set_by:
            yield f"{step.source} and {set_by[target]} both set {target}"
        elif target not in wanted:
            yield f"{step.source} sets {target}, which the model does not have"
        elif info.shape != wanted[target]:
            yield f"{step.source} gives {target} of shape {list(info.shape)}, the model has {list(wanted[target])}"
        elif info.dtype not in FLOATS:
            yield f"{step.source} is of type {info.dtype}, which is no type of weights"
