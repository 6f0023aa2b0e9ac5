"""What a specification asks for, with every default resolved and every child named. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multimodal_api import labels
from multimodal_api.resource import DeletionPolicy, Rollout
from multimodal_operator.snapshot import Purpose

if TYPE_CHECKING:
    from multimodal_api.engine import Backend, EngineKey
    from multimodal_api.resource import Spec
    from multimodal_operator.snapshot import Resource

_STORE_DIGITS: Final = 6
SERVING: Final = "serving"
"""Component label of the Deployment and its pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A resource's wish."""

    resource: Resource
    spec: Spec
    key: EngineKey
    store: str
    """Name of the claim that holds engines."""
    sources: tuple[tuple[str, str], ...]
    """Field and name of each claim that the build reads."""

    @property
    def name(self) -> str:
        """Name of the resource, its Service, its Deployment and its ServiceAccount."""
        return self.resource.name

    @property
    def namespace(self) -> str:
        """Namespace of all of them."""
        return self.resource.namespace

    @property
    def owns_store(self) -> bool:
        """The operator makes the store's claim."""
        return self.spec.engine_store.claim_name is None

    @property
    def keeps_store(self) -> bool:
        """The claim outlives the resource."""
        return self.spec.deletion_policy is DeletionPolicy.RETAIN

    @property
    def backend(self) -> Backend:
        """What runs the language model."""
        return self.spec.backend()

    @property
    def model_name(self) -> str:
        """Name of the model on the wire."""
        return self.spec.triton.model_name or self.name

    @property
    def replicas(self) -> int:
        """Serving pods, none while suspended."""
        return 0 if self.spec.suspend else self.spec.serving.replicas

    @property
    def rollout(self) -> Rollout:
        """How pods are replaced: where pods hold GPUs, a new one may have to wait for those of an old one."""
        default = Rollout.DRAIN_FIRST if self.spec.num_gpus else Rollout.ROLLING_UPDATE
        return self.spec.serving.rollout or default

    @property
    def url(self) -> str:
        """In-cluster address of KServe v2 over HTTP."""
        return f"http://{self.name}.{self.namespace}.svc:{self.spec.triton.http_port}"

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        """Jobs on the way to the engine, in order."""
        if self.spec.engine.key is not None:
            return (Purpose.FIND,)
        if self.spec.num_gpus:
            return (Purpose.INSPECT, Purpose.BUILD)
        return (Purpose.BUILD,)

    def job_name(self, purpose: Purpose) -> str:
        """Name a Job after store and key alone: resources that want the same engine meet in one Job."""
        return f"mmd-{purpose}-{self.key}-{store_digest(self.store)}"


def resolve(resource: Resource, spec: Spec) -> Wanted:
    """Fill in what the specification leaves open."""
    return Wanted(
        resource=resource,
        spec=spec,
        key=spec.engine_key(),
        store=store_claim(resource.name, spec),
        sources=() if spec.engine.key else _sources(spec),
    )


def store_claim(name: str, spec: Spec) -> str:
    """Name the claim that holds the engines of the resource called `name`."""
    return spec.engine_store.claim_name or f"{name}-engines"


def store_digest(claim: str) -> str:
    """Shorten a claim's name (up to 253 characters) to what fits in a label and in a Job's name."""
    return hashlib.sha256(claim.encode()).hexdigest()[:_STORE_DIGITS]


def selector_labels(name: str) -> dict[str, str]:
    """Give the labels of the serving pods of the resource called `name`; a Deployment's selector never changes."""
    return {
        labels.LABEL_MANAGED_BY: labels.MANAGED_BY,
        labels.LABEL_INSTANCE: name,
        labels.LABEL_COMPONENT: SERVING,
    }


def _sources(spec: Spec) -> tuple[tuple[str, str], ...]:
    named = {
        "spec.model.visualCheckpoint": spec.model.visual_checkpoint,
        "spec.model.llmCheckpoint": spec.model.llm_checkpoint,
        "spec.model.loraCheckpoint": spec.model.lora_checkpoint,
    }
    return tuple(
        (f"{field}.pvc.claimName", source.pvc.claim_name)
        for field, source in named.items()
        if source is not None and source.pvc is not None
    )
