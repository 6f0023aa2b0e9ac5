"""Rules that a specification must keep, each written once for Python and once as CEL for the API server.

Admission refuses what CEL can know; the operator checks the same rules again, so that a resource that was stored before
a rule existed gets the same message as a condition. `tests/cluster/test_resource.py` shows on a real API server that
both forms of every rule agree.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from multimodal_api.engine import Backend, Dtype, Quantization
from multimodal_api.errors import Failure
from multimodal_api.families import FAMILIES, Modality
from multimodal_api.overrides import MEDIA_SLOT, TEXT_SLOT
from multimodal_api.reasons import Reason
from multimodal_api.resource import CheckpointSource, MonitorKind, Rollout

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_api.resource import Spec

NAME_LENGTH: Final = 40
"""Longest resource name: children append to it and a Service's name has at most 63 characters."""
NAME_PATTERN: Final = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""A Service's name: it is the host name that clients use."""


class Rule(NamedTuple):
    """One rule of `spec`."""

    at: str
    """The field that the message names."""
    holds: Callable[[Spec], bool]
    cel: str
    """The same in CEL; `self` is `spec`, its defaults filled in."""
    problem: str
    """What is wrong; `{limits.maxInputLen}` stands for the value of that field of `spec`."""
    remedy: str
    reason: Reason = Reason.INVALID

    def failure(self, spec: Spec) -> Failure:
        """Describe the breach with its values."""
        values = spec.model_dump(mode="json", by_alias=True)
        problem = _PLACEHOLDER.sub(lambda match: str(_look_up(values, match[1])), self.problem)
        return Failure(reason=self.reason, at=self.at, problem=problem, remedy=self.remedy)

    def message_cel(self) -> str:
        """Give the CEL expression of the message that `str(self.failure(spec))` gives."""
        text = f"{self.at}: {self.problem}; {self.remedy}".replace("'", "\\'")
        if not (paths := _PLACEHOLDER.findall(text)):
            return f"'{text}'"
        # Not string concatenation: the API server's cost estimate of `string(…)` has no bound.
        values = ", ".join(f"dyn(self.{path})" for path in paths)
        return f"'{_PLACEHOLDER.sub('%s', text)}'.format([{values}])"


_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z.]+)\}")


def _look_up(values: dict[str, Any], path: str) -> object:
    found: Any = values
    for part in path.split("."):
        found = found[part]
    return found


def _listed(values: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"'{value}'" for value in values) + "]"


_AUDIO: Final = tuple(family.value for family, facts in FAMILIES.items() if facts.modality is Modality.AUDIO)
_WATCHING: Final = tuple(family.value for family, facts in FAMILIES.items() if facts.watches)
_TORCH_CEL: Final = "(self.engine.backend == 'torch' || (self.engine.backend == 'auto' && self.numGpus == 0))"


def _is_torch(spec: Spec) -> bool:
    return spec.backend() is Backend.TORCH


def _not_yet(at: str, holds: Callable[[Spec], bool], cel: str, problem: str, remedy: str) -> Rule:
    return Rule(at, holds, cel, f"{problem}, which this version does not implement yet", remedy, Reason.NOT_IMPLEMENTED)


def _holds_once(piece: str, slot: str, of: str) -> Rule:
    at = f"prompt.template.{piece}"

    def holds(spec: Spec) -> bool:
        text: str | None = getattr(spec.prompt.template, piece)
        return text is None or text.count(slot) == 1

    # The slot itself would be read as the place of a value.
    return Rule(
        f"spec.{at}",
        holds,
        f"!has(self.{at}) || self.{at}.split('{slot}').size() == 2",
        f"does not hold the slot of {of} exactly once",
        f"write it once, as the word {slot[1:-1]} in braces",
    )


class _Source(NamedTuple):
    """A field that says where a checkpoint lies."""

    name: str
    get: Callable[[Spec], CheckpointSource | None]

    @property
    def at(self) -> str:
        return f"spec.model.{self.name}"

    @property
    def cel(self) -> str:
        return f"self.model.{self.name}"

    def names_one(self) -> Rule:
        given = ", ".join(f"has({self.cel}.{kind})" for kind in CheckpointSource.model_fields)
        return Rule(
            self.at,
            lambda s: (source := self.get(s)) is None or len(source.given()) == 1,
            f"!has({self.cel}) || [{given}].filter(x, x).size() == 1",
            "does not name exactly one source",
            f"write one of {', '.join(CheckpointSource.model_fields)}",
        )

    def stays_inside(self) -> Rule:
        return Rule(
            f"{self.at}.pvc.path",
            lambda s: (source := self.get(s)) is None or source.pvc is None or ".." not in source.pvc.path.split("/"),
            f"!has({self.cel}) || !has({self.cel}.pvc) || !('..' in {self.cel}.pvc.path.split('/'))",
            "has a '..' part",
            "write the path from the volume's root",
        )

    def is_implemented(self) -> Rule:
        return _not_yet(
            self.at,
            lambda s: (source := self.get(s)) is None or source.given() not in {("uri",), ("image",)},
            f"!has({self.cel}) || has({self.cel}.pvc) || has({self.cel}.hf)"
            f" || has({self.cel}.uri) == has({self.cel}.image)",
            "comes from uri or image",
            "name a Hugging Face repository in hf, or copy the checkpoint to a volume and name it in pvc",
        )


_SOURCES: Final = (
    _Source("visualCheckpoint", lambda s: s.model.visual_checkpoint),
    _Source("llmCheckpoint", lambda s: s.model.llm_checkpoint),
    _Source("loraCheckpoint", lambda s: s.model.lora_checkpoint),
)
_SOURCE_RULES: Final = tuple(rule for source in _SOURCES for rule in (source.names_one(), source.stays_inside()))
_SOURCES_TO_COME: Final = tuple(source.is_implemented() for source in _SOURCES)

RULES: Final = (
    Rule(
        "spec.model.modality",
        lambda s: s.model.modality in {None, FAMILIES[s.model.type].modality},
        f"!has(self.model.modality) || (self.model.modality == 'audio') == (self.model.type in {_listed(_AUDIO)})",
        "'{model.modality}' contradicts model type '{model.type}'",
        "remove it: it follows from the type",
    ),
    *_SOURCE_RULES,
    Rule(
        "spec.limits.maxMultimodalLen",
        lambda s: s.limits.max_multimodal_len <= s.limits.max_input_len,
        "self.limits.maxMultimodalLen <= self.limits.maxInputLen",
        "{limits.maxMultimodalLen} is more than maxInputLen, {limits.maxInputLen}, but media are part of the input",
        "lower it or raise spec.limits.maxInputLen",
    ),
    Rule(
        "spec.engine.backend",
        lambda s: s.num_gpus > 0 or _is_torch(s),
        f"self.numGpus > 0 || {_TORCH_CEL}",
        "'{engine.backend}' runs on GPUs only, but numGpus is 0",
        "set spec.numGpus to at least 1, or the backend to torch",
    ),
    Rule(
        "spec.numGpus",
        lambda s: s.num_gpus <= 1 or not _is_torch(s),
        f"self.numGpus <= 1 || !{_TORCH_CEL}",
        "{numGpus} is more than the torch backend can use",
        "set it to 1, or spec.engine.backend to vllm or tensorrt-llm",
    ),
    Rule(
        "spec.dtype",
        lambda s: s.dtype is not Dtype.FLOAT16 or s.num_gpus > 0,
        "self.dtype != 'float16' || self.numGpus > 0",
        "'{dtype}' is too slow on a CPU to be of use, and numGpus is 0",
        "write bfloat16 or float32",
    ),
    Rule(
        "spec.dtype",
        lambda s: s.dtype is not Dtype.FLOAT32 or s.backend() is not Backend.TENSORRT_LLM,
        "self.dtype != 'float32' || self.engine.backend != 'tensorrt-llm'",
        "'{dtype}' is not built by the tensorrt-llm backend",
        "write bfloat16 or float16",
    ),
    Rule(
        "spec.engine.quantization",
        lambda s: s.engine.quantization is Quantization.NONE or not _is_torch(s),
        f"self.engine.quantization == 'none' || !{_TORCH_CEL}",
        "'{engine.quantization}' is not offered by the torch backend",
        "write none, or another spec.engine.backend",
    ),
    Rule(
        "spec.engineStore.claimName",
        lambda s: (
            s.engine_store.claim_name is None
            or (s.engine_store.size, s.engine_store.storage_class_name, s.engine_store.access_modes)
            == (None, None, None)
        ),
        "!has(self.engineStore.claimName) || !(has(self.engineStore.size) || has(self.engineStore.storageClassName)"
        " || has(self.engineStore.accessModes))",
        "names an existing claim, but size, storageClassName or accessModes describe a new one",
        "keep either the name or the description",
    ),
    Rule(
        "spec.triton",
        lambda s: len({s.triton.http_port, s.triton.grpc_port, s.triton.metrics_port, s.openai.port}) == 4,  # noqa: PLR2004 -- four ports
        "[self.triton.httpPort, self.triton.grpcPort, self.triton.metricsPort, self.openai.port].all(p,"
        " [self.triton.httpPort, self.triton.grpcPort, self.triton.metricsPort, self.openai.port]"
        ".filter(q, q == p).size() == 1)",
        "has ports {triton.httpPort}, {triton.grpcPort} and {triton.metricsPort}, and spec.openai.port is {openai.port}"
        ": they are not all different",
        "give httpPort, grpcPort, metricsPort and spec.openai.port a number each",
    ),
    _holds_once("turn", TEXT_SLOT, "the user's text"),
    _holds_once("medium", MEDIA_SLOT, "the medium's rows"),
    Rule(
        "spec.preprocessing.resize",
        lambda s: s.preprocessing.resize is None or s.model.type.value not in _AUDIO,
        f"!has(self.preprocessing.resize) || !(self.model.type in {_listed(_AUDIO)})",
        "is given, and model type '{model.type}' takes sounds",
        "remove it",
    ),
    Rule(
        "spec.preprocessing.numFrames",
        lambda s: s.preprocessing.num_frames is None or s.model.type.value in _WATCHING,
        f"!has(self.preprocessing.numFrames) || self.model.type in {_listed(_WATCHING)}",
        "is given, and model type '{model.type}' takes no videos",
        f"remove it, or serve a model of type {', '.join(_WATCHING)}",
    ),
    *_SOURCES_TO_COME,
    _not_yet(
        "spec.serving.rollout",
        lambda s: s.serving.rollout is not Rollout.BLUE_GREEN,
        "!has(self.serving.rollout) || self.serving.rollout != 'BlueGreen'",
        "'{serving.rollout}' is a rollout",
        "write RollingUpdate, DrainFirst or Recreate",
    ),
    _not_yet(
        "spec.autoscaling",
        lambda s: s.autoscaling is None,
        "!has(self.autoscaling)",
        "is set",
        "remove it; the scale subresource lets an autoscaler of your own set spec.serving.replicas",
    ),
    _not_yet(
        "spec.monitoring.monitor",
        lambda s: s.monitoring.monitor is MonitorKind.NONE,
        "self.monitoring.monitor == 'None'",
        "'{monitoring.monitor}' is a monitor",
        "remove it and scrape the Service's metrics port",
    ),
)


def breaches(spec: Spec) -> list[Failure]:
    """List every rule that the specification breaks, in the order of `RULES`."""
    return [rule.failure(spec) for rule in RULES if not rule.holds(spec)]
