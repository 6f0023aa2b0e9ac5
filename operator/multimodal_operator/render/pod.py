"""The parts of a pod that build Jobs and serving pods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multimodal_api.resource import PodSettings, ResourceAmounts
    from multimodal_operator.kinds import Json

GPU: Final = "nvidia.com/gpu"
USER: Final = 1000
"""User and group of every container, and the group that volumes are given to."""
CONTAINER_SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
POD_SECURITY: Final = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    # A store of many large files is not walked again for every pod.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
SCRATCH: Final = "/tmp"  # noqa: S108 -- a volume of the pod's own; its root file system is read-only
DEFAULT_REQUESTS: Final = {"cpu": "250m", "memory": "512Mi"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A claim and where the container sees it."""

    claim: str
    path: str
    read_only: bool


def container(
    *, name: str, image: str, pull_policy: str, args: list[str], settings: PodSettings, env: dict[str, Json], gpus: int
) -> Json:
    """Give a restricted container that runs the program `args[0]`."""
    return {
        "name": name,
        "image": settings.image or image,
        "imagePullPolicy": pull_policy,
        "command": args[:1],
        "args": args[1:],
        "env": environment(settings, env),
        "resources": amounts(settings.resources, gpus),
        "securityContext": CONTAINER_SECURITY,
        # A program that dies without a report leaves its last log lines instead.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def environment(settings: PodSettings, env: dict[str, Json]) -> list[Json]:
    """Merge the variables the program needs with the user's, who has the last word; a name appears once."""
    merged = {"HOME": {"value": SCRATCH}, "TMPDIR": {"value": SCRATCH}, **env}
    for variable in settings.env or ():
        source = {"value": variable.value or ""} if variable.value_from is None else {"valueFrom": variable.value_from}
        merged[variable.name] = source
    return [{"name": name, **source} for name, source in merged.items()]


def amounts(resources: ResourceAmounts | None, gpus: int) -> Json:
    """Give the container's resources; GPUs are limits, which Kubernetes takes as requests too."""
    given = resources.model_dump(exclude_none=True) if resources else {"requests": DEFAULT_REQUESTS}
    if gpus:
        given["limits"] = {**given.get("limits", {}), GPU: str(gpus)}
    return {field: dict(values) for field, values in given.items()}


def pod_spec(*, settings: PodSettings, account: str, main: Json, mounts: tuple[Mount, ...]) -> Json:
    """Give the pod around a container: its volumes, its identity, and where it may run."""
    names = {claim: f"claim-{index}" for index, claim in enumerate(dict.fromkeys(mount.claim for mount in mounts))}
    volumes: list[Json] = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in names.items()
    ]
    volumes.append({"name": "scratch", "emptyDir": {}})
    main = {
        **main,
        "volumeMounts": [
            {"name": names[mount.claim], "mountPath": mount.path, "readOnly": mount.read_only} for mount in mounts
        ]
        + [{"name": "scratch", "mountPath": SCRATCH}]
        + main.get("volumeMounts", []),
    }
    spec: Json = {
        "serviceAccountName": settings.service_account_name or account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "containers": [main],
        "volumes": volumes,
    }
    chosen = settings.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include={
            "node_selector",
            "tolerations",
            "affinity",
            "runtime_class_name",
            "priority_class_name",
            "scheduler_name",
            "image_pull_secrets",
        },
    )
    return {**spec, **{field: value for field, value in chosen.items() if value}}
