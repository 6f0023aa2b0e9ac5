"""The Jobs that find, inspect for, and build an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api import labels
from multimodal_api.build import CHECKPOINTS_MOUNT, PROGRESS_PORT, STORE_MOUNT, ExitCode
from multimodal_operator.kinds import JOB
from multimodal_operator.render.common import annotate, child, child_labels, digest
from multimodal_operator.render.pod import Mount, container, pod_spec
from multimodal_operator.snapshot import APPLIED, RUN, STORE_UID, Purpose
from multimodal_operator.want import store_digest

if TYPE_CHECKING:
    from multimodal_api.resource import CheckpointSource
    from multimodal_operator.kinds import Json
    from multimodal_operator.settings import Images
    from multimodal_operator.want import Wanted

BACKOFF_LIMIT: Final = 3
"""Attempts beyond the first within one Job; each resumes at the first unfinished stage."""
_ROLES: Final = {"visual": "visual_checkpoint", "llm": "llm_checkpoint", "lora": "lora_checkpoint"}


def job(
    want: Wanted, images: Images, purpose: Purpose, *, store_uid: str, run: int = 1, keep: tuple[str, ...] = ()
) -> Json:
    """Give the Job.

    Args:
        want: The wish; its key and store alone name the Job.
        images: What the container runs unless the resource names an image.
        purpose: What the Job is for.
        store_uid: Identity of the store's claim: a Job is no witness for a claim made anew.
        run: How often this work was begun anew, from 1.
        keep: Keys of engines that must stay in a store of the resource's own; all others are removed after publishing.
    """
    annotations = {APPLIED: template_digest(want, images, purpose), STORE_UID: store_uid, RUN: str(run)}
    return annotate(_job(want, images, purpose, keep=keep), **annotations)


def template_digest(want: Wanted, images: Images, purpose: Purpose) -> str:
    """Digest what the resource decides of a Job: who made it and which engines it keeps depend on the moment."""
    return digest(_job(want, images, purpose, keep=())["spec"])


def _job(want: Wanted, images: Images, purpose: Purpose, *, keep: tuple[str, ...]) -> Json:
    build = want.spec.build
    object_labels = {
        **child_labels(want, purpose),
        labels.LABEL_ENGINE_KEY: want.key,
        labels.LABEL_ENGINE_STORE: store_digest(want.store),
    }
    main = container(
        name="builder",
        image=images.builder,
        pull_policy=images.pull_policy,
        args=_arguments(want, purpose, keep),
        settings=build,
        env=_environment(want),
        gpus=want.spec.num_gpus if purpose is Purpose.BUILD else 0,
    )
    main["ports"] = [{"name": "progress", "containerPort": PROGRESS_PORT, "protocol": "TCP"}]
    pod = pod_spec(settings=build, account=want.name, main=main, mounts=_mounts(want))
    return {
        **child(JOB, want, want.job_name(purpose), object_labels),
        "spec": {
            "backoffLimit": BACKOFF_LIMIT,
            "activeDeadlineSeconds": build.deadline_seconds,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": "builder",
                            "operator": "In",
                            "values": [int(ExitCode.REFUSED)],
                        },
                    },
                ]
            },
            "template": {
                "metadata": {"labels": object_labels},
                "spec": {**pod, "restartPolicy": "Never"},
            },
        },
    }


def _arguments(want: Wanted, purpose: Purpose, keep: tuple[str, ...]) -> list[str]:
    arguments = ["multimodal-builder", "build", "--store", STORE_MOUNT, "--key", want.key]
    arguments += ["--inputs", want.spec.build_inputs().model_dump_json(by_alias=True)]
    for role, source in _checkpoints(want):
        arguments += [f"--{role}-checkpoint", _location(role, source)]
    if purpose is Purpose.FIND:
        return [*arguments, "--stop-after", "inspect", "--expect-engine"]  # it reads no checkpoint, nor is one mounted
    if purpose is Purpose.INSPECT:
        return [*arguments, "--stop-after", "inspect"]
    for key in keep:
        arguments += ["--keep", key]
    return arguments


def _environment(want: Wanted) -> dict[str, Json]:
    token = want.spec.model.hf_token_secret
    if token is None:
        return {}
    return {"HF_TOKEN": {"valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}}}}


def _mounts(want: Wanted) -> tuple[Mount, ...]:
    store = Mount(claim=want.store, path=STORE_MOUNT, read_only=False)
    if want.spec.engine.key is not None:
        return (store,)
    return (
        store,
        *(
            Mount(claim=source.pvc.claim_name, path=f"{CHECKPOINTS_MOUNT}/{role}", read_only=True)
            for role, source in _checkpoints(want)
            if source.pvc is not None
        ),
    )


def _checkpoints(want: Wanted) -> list[tuple[str, CheckpointSource]]:
    sources = [(role, getattr(want.spec.model, field)) for role, field in _ROLES.items()]
    return [(role, source) for role, source in sources if source is not None]


def _location(role: str, source: CheckpointSource) -> str:
    """Say to the builder where a checkpoint is. The rules refuse what is neither in a mount nor in the Hub."""
    if source.pvc is not None:
        return f"{CHECKPOINTS_MOUNT}/{role}/{source.pvc.path}"
    if source.hf is not None:
        return f"hf:{source.hf.repo}@{source.hf.revision}"
    return source.uri or source.image or ""
