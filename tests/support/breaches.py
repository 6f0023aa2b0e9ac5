"""One example for every rule of the specification: changes, the field at fault, words of the message."""

from __future__ import annotations

from typing import Any, Final

CHECKPOINT: Final = {"pvc": {"claimName": "checkpoints", "path": "neva.nemo"}}


def spec(**changes: Any) -> dict[str, Any]:
    """Make a valid specification and change the named fields (`section__field`)."""
    made: dict[str, Any] = {"model": {"type": "neva", "visualCheckpoint": CHECKPOINT}, "numGpus": 0}
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = made
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return made


BREACHES: Final[list[tuple[dict[str, Any], str, list[str]]]] = [
    ({"model__modality": "audio"}, "spec.model.modality", ["'audio'", "'neva'", "remove"]),
    ({"model__visualCheckpoint": {}}, "spec.model.visualCheckpoint", ["exactly one", "pvc"]),
    (
        {"model__visualCheckpoint": CHECKPOINT | {"uri": "x"}},
        "spec.model.visualCheckpoint",
        ["exactly one", "pvc"],
    ),
    (
        {"model__visualCheckpoint": {"pvc": {"claimName": "c", "path": "a/../b"}}},
        "spec.model.visualCheckpoint.pvc.path",
        ["'..'"],
    ),
    ({"model__llmCheckpoint": {}}, "spec.model.llmCheckpoint", ["exactly one"]),
    (
        {"model__llmCheckpoint": {"pvc": {"claimName": "c", "path": ".."}}},
        "spec.model.llmCheckpoint.pvc.path",
        ["'..'"],
    ),
    ({"model__loraCheckpoint": CHECKPOINT | {"hf": {"repo": "a/b"}}}, "spec.model.loraCheckpoint", ["exactly one"]),
    (
        {"model__loraCheckpoint": {"pvc": {"claimName": "c", "path": "a/../b"}}},
        "spec.model.loraCheckpoint.pvc.path",
        ["'..'"],
    ),
    (
        {"limits": {"maxInputLen": 100, "maxMultimodalLen": 101}},
        "spec.limits.maxMultimodalLen",
        ["101", "100", "maxInputLen"],
    ),
    ({"engine__backend": "tensorrt-llm"}, "spec.engine.backend", ["'tensorrt-llm'", "numGpus", "torch"]),
    ({"engine__backend": "vllm"}, "spec.engine.backend", ["'vllm'", "numGpus"]),
    ({"engine__backend": "torch", "numGpus": 2}, "spec.numGpus", ["2", "vllm"]),
    ({"dtype": "float16"}, "spec.dtype", ["'float16'", "bfloat16"]),
    ({"dtype": "float32", "numGpus": 1, "engine__backend": "tensorrt-llm"}, "spec.dtype", ["'float32'", "bfloat16"]),
    ({"engine__quantization": "fp8"}, "spec.engine.quantization", ["'fp8'", "none"]),
    ({"engineStore": {"claimName": "a", "size": "1Gi"}}, "spec.engineStore.claimName", ["either"]),
    ({"triton": {"httpPort": 9000, "grpcPort": 9000}}, "spec.triton", ["9000", "each"]),
    ({"prompt__template__turn": "U: "}, "spec.prompt.template.turn", ["user's text", "once", "braces"]),
    ({"prompt__template__turn": "{text} {text}"}, "spec.prompt.template.turn", ["exactly once"]),
    ({"prompt__template__medium": "<image>"}, "spec.prompt.template.medium", ["medium's rows", "once"]),
    ({"model__type": "salm", "preprocessing__resize": "pad"}, "spec.preprocessing.resize", ["'salm'", "remove"]),
    ({"preprocessing__numFrames": 8}, "spec.preprocessing.numFrames", ["'neva'", "lita"]),
    ({"model__visualCheckpoint": {"uri": "x"}}, "spec.model.visualCheckpoint", ["uri", "pvc"]),
    ({"model__llmCheckpoint": {"image": "x"}}, "spec.model.llmCheckpoint", ["image", "hf"]),
    ({"model__loraCheckpoint": {"uri": "x"}}, "spec.model.loraCheckpoint", ["uri", "pvc"]),
    ({"serving__rollout": "BlueGreen"}, "spec.serving.rollout", ["'BlueGreen'", "RollingUpdate"]),
    ({"autoscaling": {"maxReplicas": 3}}, "spec.autoscaling", ["remove"]),
    ({"monitoring__monitor": "PodMonitor"}, "spec.monitoring.monitor", ["'PodMonitor'", "scrape"]),
]
