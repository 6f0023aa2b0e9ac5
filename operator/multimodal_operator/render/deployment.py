"""The serving Deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api import labels, wire
from multimodal_api.build import STORE_MOUNT
from multimodal_api.overrides import Overrides
from multimodal_api.resource import Rollout
from multimodal_operator.kinds import DEPLOYMENT
from multimodal_operator.render.common import annotate, child, child_labels, compact
from multimodal_operator.render.pod import Mount, container, pod_spec
from multimodal_operator.snapshot import HELD_SPEC, STORE_UID
from multimodal_operator.want import SERVING, selector_labels

if TYPE_CHECKING:
    from multimodal_api.resource import Probe
    from multimodal_operator.kinds import Json
    from multimodal_operator.settings import Images
    from multimodal_operator.want import Wanted

PORTS: Final = {"http": 8000, "grpc": 8001, "metrics": 8002, "openai": 9000}
"""Inside the pod; the Service maps the user's numbers to these names."""
DRAIN_SECONDS: Final = wire.GRPC_CONNECTION_SECONDS + 3
"""Time in which a pod that ends takes requests: until every node's proxy has heard of it, and the last connection of
gRPC that came before that has been renewed elsewhere."""
FINISH_SECONDS: Final = 50
"""Time that running requests have to finish after that."""
GRACE_SECONDS: Final = DRAIN_SECONDS + FINISH_SECONDS + 10
"""Until the kubelet ends a pod by force: a part is for the exit itself."""
START_SECONDS: Final = 1800
"""Longest time from a container's start to its first answer: large engines load for many minutes."""
SCHEDULING_SECONDS: Final = 600
"""Time for scheduling and image pull beside the start, before a rollout counts as stalled."""
SHARED_MEMORY: Final = "1Gi"
"""Triton hands tensors to its Python backend through /dev/shm, whose default of 64 MB holds few requests."""
STRATEGIES: Final[dict[Rollout, Json]] = {
    Rollout.ROLLING_UPDATE: {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
    Rollout.DRAIN_FIRST: {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
    Rollout.RECREATE: {"type": "Recreate"},
}


def deployment(want: Wanted, images: Images, *, store_uid: str) -> Json:
    """Give the Deployment that serves the wanted engine. `store_uid` is the identity of the claim that holds it."""
    spec = _spec(want, images)
    return _deployment(want, want.key, spec, store_uid)


def held(want: Wanted, *, key: str, spec: Json, store_uid: str) -> Json:
    """Give the Deployment as it serves the engine `key`, for as long as the wanted one is not built.

    Only the number of pods follows the specification; `spec` is the rest, as it was rendered (`HELD_SPEC`).
    """
    return _deployment(want, key, {**spec, "replicas": want.replicas}, store_uid)


def _deployment(want: Wanted, key: str, spec: Json, store_uid: str) -> Json:
    object_labels = {**child_labels(want, SERVING), labels.LABEL_ENGINE_KEY: key}
    rest = {field: value for field, value in spec.items() if field != "replicas"}
    obj = annotate(
        child(DEPLOYMENT, want, want.name, object_labels), **{HELD_SPEC: compact(rest), STORE_UID: store_uid}
    )
    return {**obj, "spec": spec}


def _spec(want: Wanted, images: Images) -> Json:
    serving, triton = want.spec.serving, want.spec.triton
    args = ["multimodal-server", "--engine", f"{STORE_MOUNT}/{want.key}", "--model-name", want.model_name]
    args += ["--model-version", str(triton.model_version), "--http-address", triton.http_address]
    args += ["--drain-seconds", str(DRAIN_SECONDS), "--grace-seconds", str(FINISH_SECONDS)]
    for name, port in PORTS.items():
        args += [f"--{name}-port", str(port)]
    for domain in want.spec.openai.media_domains or ():
        args += ["--media-domain", domain]
    if (overrides := want.spec.overrides()) != Overrides():
        # Kubernetes would put a variable's value where a dollar sign and parentheses stand.
        args += ["--overrides", overrides.model_dump_json(by_alias=True, exclude_none=True).replace("$", r"\u0024")]
    probes = _probes(want)
    main = container(
        name="server",
        image=images.server,
        pull_policy=images.pull_policy,
        args=args,
        settings=serving,
        env={},
        gpus=want.spec.num_gpus,
    )
    main |= {
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in PORTS.items()],
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 -- a volume of the pod's own
        **probes,
    }
    store = Mount(claim=want.store, path=STORE_MOUNT, read_only=True)
    pod = pod_spec(settings=serving, account=want.name, main=main, mounts=(store,))
    pod["volumes"] = [*pod["volumes"], {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}}]
    pod["terminationGracePeriodSeconds"] = GRACE_SECONDS
    startup = probes["startupProbe"]
    return {
        "replicas": want.replicas,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": startup["periodSeconds"] * startup["failureThreshold"] + SCHEDULING_SECONDS,
        "strategy": STRATEGIES[want.rollout],
        "selector": {"matchLabels": selector_labels(want.name)},
        "template": {
            "metadata": {"labels": {**child_labels(want, SERVING), labels.LABEL_ENGINE_KEY: want.key}},
            "spec": pod,
        },
    }


def _probes(want: Wanted) -> dict[str, Json]:
    """Give the probes: ready is what Triton says of the model, for it calls itself ready before models are loaded."""
    ready = {"httpGet": {"path": f"/v2/models/{want.model_name}/ready", "port": "http"}}
    live = {"httpGet": {"path": "/v2/health/live", "port": "http"}}
    given = want.spec.serving.probes
    # A start is looked at every second, so that a small model serves as soon as it can.
    startup = {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": START_SECONDS}
    readiness = {"periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3}
    liveness = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}
    return {
        "startupProbe": {**ready, **startup, **_timing(given.startup if given else None)},
        "readinessProbe": {**ready, **readiness, **_timing(given.readiness if given else None)},
        "livenessProbe": {**live, **liveness, **_timing(given.liveness if given else None)},
    }


def _timing(probe: Probe | None) -> Json:
    return probe.model_dump(by_alias=True, exclude_none=True) if probe else {}
