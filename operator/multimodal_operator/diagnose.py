"""Why a pod, a Job or a Deployment does not get on, in the words of the closed list. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_operator import views
from multimodal_operator.render.pod import GPU
from multimodal_operator.want import SERVING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimodal_operator.snapshot import Deployment, Job, Pod

_PULL: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_OOM: Final = "OOMKilled"
_WORDS: Final = 1024
"""Characters of a program's last words that are shown; the end tells most."""


def waiting(pod: Pod) -> Failure | None:
    """Tell why a pod does not start, while Kubernetes still tries."""
    at = f"pod {pod.name}"
    if pod.unscheduled:
        return _unscheduled(at, pod.unscheduled)
    if pod.waiting is None:
        return None
    reason, message = pod.waiting
    if reason in _PULL:
        return Failure(
            reason=Reason.IMAGE_PULL_FAILED,
            at=at,
            problem=message or reason,
            remedy="correct the image's name, or give the pull secret in imagePullSecrets",
        )
    if reason == "CreateContainerConfigError" and "secret" in message.lower():
        return Failure(
            reason=Reason.SECRET_NOT_FOUND,
            at=at,
            problem=message,
            remedy="create the Secret with that key; the pod goes on by itself",
        )
    if reason.startswith(("CreateContainer", "RunContainer")):
        return Failure(reason=_defect(pod), at=at, problem=message or reason, remedy="correct the pod's settings")
    return None


def _unscheduled(at: str, message: str) -> Failure:
    if "unbound" in message or "persistentvolumeclaim" in message.lower():
        return Failure(
            reason=Reason.WAITING_FOR_STORAGE, at=at, problem=message, remedy="see the claim's events for its reason"
        )
    if GPU in message:
        return Failure(
            reason=Reason.WAITING_FOR_GPU,
            at=at,
            problem=message,
            remedy="free GPUs, add a node with some, or lower spec.numGpus; the pod goes on by itself",
        )
    return Failure(
        reason=Reason.UNSCHEDULABLE,
        at=at,
        problem=message,
        remedy="adapt resources, nodeSelector, tolerations or affinity, or add a node",
    )


def death(pod: Pod) -> Failure | None:
    """Tell why a pod's container ended, from what it left."""
    at = f"pod {pod.name}"
    if pod.evicted:
        return Failure(reason=_defect(pod), at=at, problem=pod.evicted, remedy="see the node's conditions")
    ended = pod.ended
    if ended is None or ended.exit_code == 0:
        return None
    report = views.build_report(ended.message)
    left = report.failure if report else views.failure(ended.message)
    if left is not None:
        return left
    if ended.reason == _OOM:
        return Failure(
            reason=Reason.OUT_OF_MEMORY,
            at=at,
            problem="the container used more memory than its limit",
            remedy=f"raise spec.{'serving' if pod.component == SERVING else 'build'}.resources.limits.memory",
        )
    words = ended.message[-_WORDS:] or "it left no message"
    return Failure(
        reason=_defect(pod),
        at=at,
        problem=f"the container ended with exit code {ended.exit_code}: {words}",
        remedy=f"see kubectl logs {pod.name}",
    )


def job_failure(job: Job, pods: Iterable[Pod]) -> Failure:
    """Tell why a failed Job failed: its last pod's own words, else the Job controller's."""
    reason, message = job.failure or ("", "")
    if reason == "DeadlineExceeded":
        return Failure(
            reason=Reason.DEADLINE_EXCEEDED,
            at=f"job {job.name}",
            problem=message,
            remedy="raise spec.build.deadlineSeconds or give the build more CPU",
        )
    dead = sorted((pod for pod in pods if pod.owner_uid == job.uid), key=lambda pod: pod.created, reverse=True)
    found = next(filter(None, (death(pod) for pod in dead)), None)
    return found or Failure(
        reason=Reason.BUILD_FAILED,
        at=f"job {job.name}",
        problem=f"{reason}: {message}",
        remedy=f"see kubectl describe job {job.name}",
    )


def rollout_failure(deployment: Deployment, pods: Iterable[Pod]) -> Failure | None:
    """Tell what keeps new serving pods from answering; None while they are merely starting."""
    if deployment.refused:
        return Failure(
            reason=Reason.QUOTA_EXCEEDED,
            at="the serving pods",
            problem=deployment.refused,
            remedy="raise the quota, or adapt spec.serving to it",
        )
    for pod in sorted(pods, key=lambda pod: pod.created, reverse=True):
        if pod.ready or pod.deleting:
            continue
        found = waiting(pod) or (death(pod) if pod.restarts or pod.phase == "Failed" else None)
        if found is not None:
            return found
    if deployment.stalled:
        return Failure(
            reason=Reason.DEADLINE_EXCEEDED,
            at="the serving pods",
            problem=deployment.stalled,
            remedy="see kubectl describe pods; spec.serving.probes.startup sets the time that a start may take",
        )
    return None


def _defect(pod: Pod) -> Reason:
    return Reason.SERVER_FAILED if pod.component == SERVING else Reason.BUILD_FAILED
