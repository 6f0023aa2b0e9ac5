"""The ten traps: mistakes that raise no error and give a silently wrong model, with the comparison that each breaks.

Every entry replaces one function or table of the product by one that falls into its trap. The comparison is with what
the project did not write (transformers, torch, SentencePiece, texts of NeMo's own); it holds without the mistake, and
fails with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
import torch

from multimodal_builder import lora, plan, speech, templates, towers
from multimodal_builder.checkpoints.ranks import RankedSource
from multimodal_builder.checkpoints.stacked import StackedSource
from multimodal_builder.mappings.base import SplitGated, SplitQkv, TransposeQkv
from multimodal_builder.mappings.language_model import Architecture
from multimodal_modeling.model import MultimodalModel
from multimodal_modeling.projector import JoinSquares
from multimodal_recipes import waves
from multimodal_recipes.recipe import EdgePadding, FrameResize
from support import vision_cases
from support.comparisons import (
    Comparison,
    accounted,
    adapted,
    answered,
    asked,
    heard,
    recorded,
    rows,
    scores,
    seen,
    spliced,
)
from support.towers import make_clip, make_siglip

pytestmark = pytest.mark.parity


class Trap(NamedTuple):
    """A mistake, and what notices it."""

    number: int
    """As in the list of traps that the project began with."""
    name: str
    at: str
    """What of the product falls into it."""
    mistake: Any
    """What stands in its place."""
    compare: Comparison
    wrong: float = 1000
    """The mistake is larger than so many tolerances."""


def contiguous(rule: SplitQkv, array: Any) -> Any:
    size = array.shape[0] // (rule.heads + 2 * rule.groups)
    return np.split(array, [rule.heads * size, (rule.heads + rule.groups) * size])


def keys_for_values(rule: SplitQkv, array: Any) -> Any:
    query, key, value = SPLIT(rule, array)
    return query, value, key


SPLIT: Final = SplitQkv.apply
BUILD: Final = Architecture.build
ROWS: Final = StackedSource.row_reader
MERGED: Final = lora.MergedSource.read


def swapped(_rule: SplitGated, array: Any) -> Any:
    half = array.shape[0] // 2
    return array[half:], array[:half]


def untouched(_rule: object, array: Any) -> Any:
    return (array,)


def only_transposed(_rule: TransposeQkv, array: Any) -> Any:
    return (array.T.copy(),)


def rotated(**wrong: Any) -> Callable[..., Any]:
    """Describe positions in another way."""

    def build(*args: Any, **kwargs: Any) -> Any:
        model = BUILD(*args, **kwargs)
        return replace(model, config=model.config | {"rope_parameters": model.config["rope_parameters"] | wrong})

    return build


def by_id(model: MultimodalModel, ids: list[int], media_at: range, media: torch.Tensor) -> torch.Tensor:
    """Put media over the first tokens of id 0."""
    found = [place for place, token in enumerate(ids) if token == 0][: len(media_at)]
    return model.llm.embed(torch.tensor(ids)).index_copy(0, torch.tensor(found), media)


def layers_backwards(source: StackedSource, name: str) -> Any:
    """Of a model of two layers."""
    return ROWS(source, re.sub(r"(?<=\.layers\.)[01](?=\.)", lambda found: str(1 - int(found[0])), name))


def first_rank_alone(source: RankedSource, name: str) -> Any:
    """Put the first rank's part in the place of all."""
    merged = source._tensors[name]
    part = merged.ranks[0].read(merged.name)
    return part if merged.axis is None else np.concatenate([part] * len(merged.ranks), axis=merged.axis)


def merged_twice(source: lora.MergedSource, name: str) -> Any:
    merged = MERGED(source, name)
    return merged + (merged - source._base.read(name))


def never_merged(base: Any, found: Any, _config: object) -> Any:
    names = {name for adapters in found for name in adapters.names}
    infos = {name: info for name, info in base.infos().items() if name not in names}
    return type("Base", (), {"infos": lambda _: infos, "read": lambda _, name: base.read(name)})()


CLIP_CASE: Final = vision_cases.Case(make_clip)
JOINED: Final = vision_cases.Case(make_clip, "mlp_downsample", rows=9)
JOINED_ODD: Final = vision_cases.Case(
    make_siglip, "mlp_downsample", image_size=40, feature="cls_patch", rows=9, form="bin"
)
TRAINED: Final = vision_cases.Case(make_clip, "mlp_downsample", trained=True, rows=9)
JOIN: Final = JoinSquares.forward
VISION: Final = plan.vision_recipe
PREPROCESSING: Final = towers.read_preprocessing


def row_major(self: Any, features: torch.Tensor) -> torch.Tensor:
    """Give the squares of a picture line by line, as anybody would think."""
    joined = JOIN(self, features)
    edge = int(joined.shape[-2] ** 0.5)
    return joined.unflatten(-2, (edge, edge)).transpose(-3, -2).flatten(-3, -2)


def scattered(self: Any, features: torch.Tensor) -> torch.Tensor:
    """Give the four tokens of a square in column order."""
    joined = JOIN(self, features).unflatten(-1, (4, -1))
    return joined[..., [0, 2, 1, 3], :].flatten(-2)


def changed(function: Callable[..., Any], **wrong: Any) -> Callable[..., Any]:
    """Change fields of the model that a function makes."""
    return lambda *args, **kwargs: function(*args, **kwargs).model_copy(update=wrong)


def periodic(how: Any) -> Any:
    left = (how.fft - how.window) // 2
    return np.pad(np.hanning(how.window + 1)[:-1], (left, how.fft - how.window - left))


FRONT_END: Final = speech._front_end


TEMPLATE: Final = templates.prompt_template


def written(**edits: Callable[[str], str]) -> Callable[..., Any]:
    """Edit fields of a template."""

    def make(*args: Any, **kwargs: Any) -> Any:
        made = TEMPLATE(*args, **kwargs)
        return made.model_copy(update={field: edit(getattr(made, field)) for field, edit in edits.items()})

    return make


BASE: Final = "multimodal_builder.mappings.base"
CONFIG: Final = "multimodal_builder.checkpoints.config.LanguageConfig"
RANKS: Final = "multimodal_builder.checkpoints.ranks"
DESCRIBED: Final = "multimodal_builder.mappings.language_model.Architecture.build"
SQUARES: Final = "multimodal_modeling.projector.JoinSquares.forward"
PIXELS: Final = "multimodal_builder.towers.read_preprocessing"
WORDS: Final = "multimodal_builder.templates.prompt_template"
MEL: Final = "multimodal_builder.speech._front_end"
SEEN: Final = "multimodal_builder.plan.vision_recipe"
CHOICE: Final = "multimodal_modeling.generate.scores_of"
ACCOUNTS: Final = "multimodal_builder.plan.check_accounts"
RESAMPLE: Final = "multimodal_recipes.waves.resample"
HALF: Final = (0.5, 0.5, 0.5)
NOTHING: Final = re.compile("(?!)")
LAST: Final = "model.decoder.layers.1.mlp.linear_fc2.weight"

TRAPS: Final = (
    Trap(1, "queries, keys, values one behind the other", f"{BASE}.SplitQkv.apply", contiguous, scores("llama")),
    Trap(1, "keys for values", f"{BASE}.SplitQkv.apply", keys_for_values, scores("mixtral")),
    Trap(1, "GPT-2's heads not taken apart", f"{BASE}.TransposeQkv.apply", only_transposed, scores("gpt-2")),
    Trap(2, "up before gate", f"{BASE}.SplitGated.apply", swapped, scores("llama")),
    Trap(2, "w3 before w1", f"{BASE}.SplitGated.apply", swapped, scores("mixtral")),
    Trap(2, "ranks' halves put together plainly", f"{RANKS}._GATED", NOTHING, scores("llama", "TP 2")),
    Trap(2, "experts' halves put together plainly", f"{RANKS}._GATED", NOTHING, scores("mixtral", "TP 4, PP 2")),
    Trap(3, "Gemma's norms as NeMo stores them", f"{BASE}.Offset.apply", untouched, scores("gemma")),
    Trap(3, "layernorm1p as it is stored", f"{BASE}.Offset.apply", untouched, scores("gpt-2, layernorm1p, untied")),
    Trap(3, "layernorm1p taken for plain", f"{CONFIG}.zero_centered", property(lambda _: False), scores("nemotron")),
    Trap(4, "squares line by line", SQUARES, row_major, rows(JOINED)),
    Trap(4, "squares of an odd picture line by line", SQUARES, row_major, rows(JOINED_ODD)),
    Trap(4, "tokens of a square in column order", SQUARES, scattered, rows(JOINED)),
    Trap(4, "the last layer", SEEN, changed(VISION, select_layer=-1), rows(CLIP_CASE)),
    Trap(
        4,
        "the class token kept",
        SEEN,
        changed(VISION, class_token_length=0),
        rows(CLIP_CASE),
    ),
    Trap(4, "the trained tower ignored", "multimodal_builder.towers.ARCHIVE_PREFIX", "nowhere.", rows(TRAINED)),
    Trap(5, "mean 0.5", PIXELS, changed(PREPROCESSING, mean=HALF), seen),
    Trap(5, "deviation 0.5", PIXELS, changed(PREPROCESSING, std=HALF), seen),
    Trap(5, "squashed", PIXELS, changed(PREPROCESSING, resize=FrameResize.SQUASH), seen),
    Trap(5, "padded", PIXELS, changed(PREPROCESSING, resize=FrameResize.PAD), seen),
    Trap(5, "bilinear", PIXELS, changed(PREPROCESSING, resample=2), seen),
    Trap(6, "padding chosen", CHOICE, lambda logits, _: logits, answered("llama")),
    Trap(6, "tied padding chosen", CHOICE, lambda logits, _: logits, answered("gpt-2")),
    Trap(6, "media found by id", "multimodal_modeling.model.MultimodalModel.prompt_embeddings", by_id, spliced),
    Trap(7, "no line behind media", WORDS, written(medium=str.rstrip), asked("nvgpt")),
    Trap(7, "no label line", WORDS, written(turn=lambda turn: turn.partition("<extra_id_2>")[0]), asked("nvgpt")),
    Trap(7, "turns without their end", WORDS, written(turn=lambda t: t.replace("<|eot_id|>", "")), asked("llama_3")),
    Trap(7, "a second beginning", WORDS, written(before=lambda before: f"<|begin_of_text|>{before}"), asked("llama_3")),
    Trap(7, "no space in front of a turn", WORDS, written(lead=str.strip), asked("v1")),
    Trap(7, "ids not replaced", "multimodal_builder.templates.SEQUENCE_MARKS", {}, asked("llama_2")),
    Trap(8, "the usual base", DESCRIBED, rotated(rope_theta=10_000.0), scores("llama")),
    Trap(8, "Llama 3.1 unscaled", DESCRIBED, rotated(rope_type="default"), scores("llama 3.1")),
    Trap(8, "Llama 3.2's factor", DESCRIBED, rotated(factor=32.0), scores("llama 3.1")),
    Trap(8, "not interpolated", DESCRIBED, rotated(rope_type="default"), scores("llama, positions interpolated")),
    Trap(8, "whole heads rotated", DESCRIBED, rotated(partial_rotary_factor=1.0), scores("nemotron")),
    Trap(9, "zeros at the edges", MEL, changed(FRONT_END, padding=EdgePadding.ZERO), heard, 10),
    Trap(9, "no emphasis", MEL, changed(FRONT_END, preemphasis=0.0), heard, 10),
    Trap(9, "NeMo's default window", MEL, changed(FRONT_END, window=320), heard, 10),
    Trap(9, "a periodic window", "multimodal_recipes.audio._window", periodic, heard, 10),
    Trap(9, "another rate taken for 16 kHz", RESAMPLE, lambda samples, *_: samples, recorded, 10),
    Trap(
        9,
        "one channel of two",
        "multimodal_recipes.waves.to_mono",
        lambda wave, rate: waves.resample(wave.samples[:, 0], wave.rate, rate),
        recorded,
        10,
    ),
    Trap(
        10,
        "missing weights",
        ACCOUNTS,
        lambda *_, **__: None,
        accounted(lambda s: s.pop(LAST)),
    ),
    Trap(
        10,
        "weights left over",
        ACCOUNTS,
        lambda *_, **__: None,
        accounted(lambda state: state.update({"model.another.weight": torch.ones(2)})),
    ),
    Trap(10, "adapters unscaled", "multimodal_builder.lora._scale", lambda *_: 1.0, adapted),
    Trap(10, "adapters merged twice", "multimodal_builder.lora.MergedSource.read", merged_twice, adapted),
    Trap(10, "adapters forgotten", "multimodal_builder.plan.merge_adapters", never_merged, adapted),
    Trap(
        10,
        "stacked layers backwards",
        "multimodal_builder.checkpoints.stacked.StackedSource.row_reader",
        layers_backwards,
        scores("llama", "torch_dist"),
    ),
    Trap(10, "the first rank alone", f"{RANKS}.RankedSource.read", first_rank_alone, scores("llama", "TP 2")),
)


def test_there_are_ten() -> None:
    assert {trap.number for trap in TRAPS} == set(range(1, 11))


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: f"{trap.number}: {trap.name}")
def test_falling_into_a_trap_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: Trap) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder in (right, wrong):
        folder.mkdir()
    assert trap.compare(right) <= 1
    monkeypatch.setattr(trap.at, trap.mistake)
    assert trap.compare(wrong) > trap.wrong
