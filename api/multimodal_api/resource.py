"""`MultimodalDeployment`: the specification that users write.

The models are the one source: the CRD's schema, its defaults and `kubectl explain` are generated from them (`crd`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from multimodal_api.base import Model
from multimodal_api.engine import (
    Backend,
    BuildInputs,
    Dtype,
    EngineKey,
    Limits,
    Quantization,
    SourceIdentity,
    TokenLimits,
)
from multimodal_api.families import FAMILIES, Family, LlmType, Modality
from multimodal_api.overrides import Overrides, PreprocessingOverrides, PromptOverrides

ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$", max_length=32)]
Port = Annotated[int, Field(ge=1, le=65_535)]
MEDIA_DOMAIN: Final = (
    r"^(http://)?(\*\.)?([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)*[a-z]([-a-z0-9]*[a-z0-9])?(:[1-9][0-9]{0,4})?$"
)
"""Never a number: an address that is one names a machine, and no domain."""
MediaDomain = Annotated[str, StringConstraints(pattern=MEDIA_DOMAIN, max_length=270)]
AnyObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""Handed to Kubernetes as it is, which validates it when the pod is made."""


class ClaimPath(Model):
    """A file or folder on a PersistentVolumeClaim of the same namespace."""

    claim_name: ObjectName
    """Name of the claim."""
    path: Annotated[str, StringConstraints(pattern=r"^[^/].*$", min_length=1, max_length=1024)]
    """Path inside the volume, relative to its root."""


class HubRepository(Model):
    """A repository of the Hugging Face Hub."""

    repo: Text
    """Owner and name."""
    revision: Text = "main"
    """Branch, tag or commit."""


class CheckpointSource(Model):
    """Where a checkpoint lies: exactly one of its fields."""

    pvc: ClaimPath | None = None
    """A claim and a path in it."""
    hf: HubRepository | None = None
    """A Hugging Face repository."""
    uri: Text | None = None
    """An address to download from."""
    image: Text | None = None
    """An image whose files are the checkpoint."""

    def given(self) -> tuple[str, ...]:
        """Name the sources that are set; a valid specification has one."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    def identity(self) -> SourceIdentity:
        """Name the source for the engine key."""
        if self.pvc is not None:
            return SourceIdentity(kind="pvc", location=self.pvc.claim_name, path=self.pvc.path)
        if self.hf is not None:
            return SourceIdentity(kind="hf", location=self.hf.repo, path=self.hf.revision)
        if self.uri is not None:
            return SourceIdentity(kind="uri", location=self.uri)
        return SourceIdentity(kind="image", location=self.image or "")


class SecretKey(Model):
    """One key of a Secret in the same namespace; the operator never reads it, the kubelet hands it to the pod."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """Key in the Secret."""


class ModelSpec(Model):
    """Which model, and where its checkpoints lie."""

    type: Family
    """Model family, as NeMo's --model_type."""
    modality: Modality | None = None
    """Kind of media, as NeMo's --modality. Follows from type; a contradiction is refused."""
    llm_type: LlmType = LlmType.LLAMA
    """Language model, as NeMo's --llm_model_type."""
    visual_checkpoint: CheckpointSource
    """Checkpoint with the projector, and with vision tower and language model where the archive holds them."""
    llm_checkpoint: CheckpointSource | None = None
    """Checkpoint of the language model. Default: the visual checkpoint."""
    lora_checkpoint: CheckpointSource | None = None
    """Checkpoint of a LoRA adapter that is merged into the language model."""
    hf_token_secret: SecretKey | None = None
    """Secret with a Hugging Face token, handed to the build as HF_TOKEN."""


class TritonSpec(Model):
    """How Triton is reached."""

    model_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$", max_length=128)] | None = None
    """Name of the model on the wire. Default: the resource's name."""
    model_version: Annotated[int, Field(ge=1, le=2_147_483_647)] = 1
    """Version of the model on the wire."""
    http_port: Port = 8000
    """Port of KServe v2 over HTTP."""
    grpc_port: Port = 8001
    """Port of KServe v2 over gRPC."""
    metrics_port: Port = 8002
    """Port of Prometheus metrics."""
    http_address: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F.:]+$", max_length=45)] = "0.0.0.0"  # noqa: S104 -- in a pod; NeMo's default
    """Address that the server listens on inside its pod."""


class OpenAiSpec(Model):
    """How the OpenAI-compatible API is reached."""

    port: Port = 9000
    """Port of `/v1/chat/completions` and its companions."""
    media_domains: Annotated[list[MediaDomain], Field(max_length=64)] | None = None
    """Hosts that pictures, videos and sounds are fetched from where a request names an address: HOST, or *.DOMAIN for
    all below it, over HTTPS; http:// in front for HTTP, :PORT behind for another port. Default: nothing is fetched."""


class EngineStore(Model):
    """Where engines are kept: a claim that exists, or one that the operator makes."""

    claim_name: ObjectName | None = None
    """An existing claim. It may be shared: resources with the same claim and engine key share one engine."""
    size: Quantity | None = None
    """Size of the claim that the operator makes. Default: 20Gi."""
    storage_class_name: ObjectName | None = None
    """Storage class of that claim. Default: the cluster's default class."""
    access_modes: (
        Annotated[
            list[Annotated[str, StringConstraints(pattern=r"^ReadWrite(Once|Many|OncePod)$")]], Field(max_length=3)
        ]
        | None
    ) = None
    """Access modes of that claim. Default: ReadWriteOnce."""


class BackendChoice(StrEnum):
    """Values of `spec.engine.backend`."""

    AUTO = "auto"
    TORCH = "torch"
    VLLM = "vllm"
    TENSORRT_LLM = "tensorrt-llm"


class EngineSpec(Model):
    """What runs the language model."""

    key: EngineKey | None = None
    """Serve the engine that the store holds under this key; nothing is built."""
    backend: BackendChoice = BackendChoice.AUTO
    """auto takes torch when numGpus is 0, else vllm."""
    quantization: Quantization = Quantization.NONE
    """Weight format below 16 bits."""


class ResourceAmounts(Model):
    """Compute resources of the container; GPUs come from numGpus."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Amounts that the scheduler reserves."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Amounts that the container may not exceed."""


class Toleration(Model):
    """A taint that the pods tolerate, as in a pod."""

    key: Text | None = None
    """Taint key; empty matches all keys."""
    operator: Annotated[str, StringConstraints(pattern=r"^(Exists|Equal)$")] | None = None
    """Exists or Equal."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """Taint value."""
    effect: Annotated[str, StringConstraints(pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)$")] | None = None
    """Taint effect; empty matches all effects."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long a NoExecute taint is tolerated, in seconds."""


class EnvVar(Model):
    """An environment variable of the container, as in a pod."""

    name: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$", max_length=256)]
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=32_768)] | None = None
    """Its value."""
    value_from: AnyObject | None = None
    """Its source: a Secret's or ConfigMap's key, or a field of the pod."""


class LocalReference(Model):
    """An object of the same namespace."""

    name: ObjectName
    """Its name."""


class PodSettings(Model):
    """What a cluster's administrator asks of pods; the same for build Jobs and serving pods."""

    image: Text | None = None
    """Image of the container. Default: the operator's own version of it."""
    resources: ResourceAmounts | None = None
    """CPU and memory of the container."""
    node_selector: (
        Annotated[dict[str, Annotated[str, StringConstraints(max_length=63)]], Field(max_length=32)] | None
    ) = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Taints that the pods tolerate."""
    affinity: AnyObject | None = None
    """Scheduling affinity, as in a pod."""
    runtime_class_name: ObjectName | None = None
    """Runtime class, such as nvidia."""
    priority_class_name: ObjectName | None = None
    """Priority class."""
    scheduler_name: ObjectName | None = None
    """Scheduler other than the default one."""
    env: Annotated[list[EnvVar], Field(max_length=64)] | None = None
    """Further environment variables."""
    image_pull_secrets: Annotated[list[LocalReference], Field(max_length=8)] | None = None
    """Secrets that the kubelet pulls the image with."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods. Default: one without rights, made by the operator."""


class BuildSpec(PodSettings):
    """The build Job."""

    deadline_seconds: Annotated[int, Field(ge=60, le=604_800)] = 21_600
    """Time after which a build is ended, all attempts together, in seconds."""


class Probe(Model):
    """Timing of one probe; what is left out keeps the operator's value."""

    initial_delay_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """Wait before the first probe, in seconds."""
    period_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """Time between probes, in seconds."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """Time after which a probe has failed, in seconds."""
    failure_threshold: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Failures in a row that count."""


class Probes(Model):
    """Timing of the serving container's probes."""

    startup: Probe | None = None
    """Until the engine is loaded and warm."""
    readiness: Probe | None = None
    """Whether the pod gets requests."""
    liveness: Probe | None = None
    """Whether the container is restarted."""


class Rollout(StrEnum):
    """How new serving pods replace old ones."""

    ROLLING_UPDATE = "RollingUpdate"
    DRAIN_FIRST = "DrainFirst"
    RECREATE = "Recreate"
    BLUE_GREEN = "BlueGreen"


class ServingSpec(PodSettings):
    """The serving Deployment."""

    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Number of serving pods."""
    rollout: Rollout | None = None
    """RollingUpdate starts a new pod first and needs its GPUs free; DrainFirst ends an old one first; Recreate ends all
    first. Default: RollingUpdate without GPUs, DrainFirst with them."""
    probes: Probes | None = None
    """Timing of the probes."""


class AutoscalingSpec(Model):
    """Number of serving pods by load."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest pods."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most pods."""


class MonitorKind(StrEnum):
    """Values of `spec.monitoring.monitor`."""

    NONE = "None"
    POD_MONITOR = "PodMonitor"


class MonitoringSpec(Model):
    """How the pods' metrics are collected."""

    monitor: MonitorKind = MonitorKind.NONE
    """PodMonitor makes one for the Prometheus operator."""


class DeletionPolicy(StrEnum):
    """What becomes of the engine store that the operator made."""

    DELETE = "Delete"
    RETAIN = "Retain"


class RequestLimits(TokenLimits):
    """Sizes the engine is built for; requests beyond them are refused."""

    vision_max_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pictures or frames that the media encoder takes at once. Default: 1; 256 for lita and vita."""


class Spec(Model):
    """What is wanted: a model, the sizes it is built for, and how it is served."""

    model: ModelSpec
    """Which model, and where its checkpoints lie."""
    num_gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs per serving pod, which is the tensor-parallel size. 0 runs on the CPU with the torch backend."""
    dtype: Dtype = Dtype.BFLOAT16
    """Floating-point type of weights and arithmetic."""
    limits: RequestLimits = RequestLimits()
    """Sizes the engine is built for; a change builds a new engine."""
    triton: TritonSpec = TritonSpec()
    """How Triton is reached."""
    openai: OpenAiSpec = OpenAiSpec()
    """How the OpenAI-compatible API is reached."""
    prompt: PromptOverrides = PromptOverrides()
    """How conversations become prompts, where not as in the checkpoint's training. A change builds nothing."""
    preprocessing: PreprocessingOverrides = PreprocessingOverrides()
    """How pictures and videos are prepared, where not as in the checkpoint's training. A change builds nothing."""
    engine_store: EngineStore = EngineStore()
    """Where engines are kept."""
    engine: EngineSpec = EngineSpec()
    """What runs the language model."""
    build: BuildSpec = BuildSpec()
    """The build Job."""
    serving: ServingSpec = ServingSpec()
    """The serving Deployment."""
    autoscaling: AutoscalingSpec | None = None
    """Number of serving pods by load."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """How the pods' metrics are collected."""
    deletion_policy: DeletionPolicy = DeletionPolicy.DELETE
    """Whether the engine store that the operator made is deleted with the resource. A claim of yours never is."""
    suspend: bool = False
    """Stop the pods and start no build; the engine is kept."""

    def backend(self) -> Backend:
        """Resolve `auto`."""
        choice = self.engine.backend
        if choice is BackendChoice.AUTO:
            return Backend.TORCH if self.num_gpus == 0 else Backend.VLLM
        return Backend(choice.value)

    def resolved_limits(self) -> Limits:
        """Fill in the one limit whose default depends on the family."""
        limits = self.limits.model_dump(exclude_none=True)
        limits.setdefault("vision_max_batch_size", FAMILIES[self.model.type].vision_max_batch_size)
        return Limits(**limits)

    def overrides(self) -> Overrides:
        """Collect what the deployment changes of the model's recipe."""
        return Overrides(prompt=self.prompt, preprocessing=self.preprocessing)

    def build_inputs(self) -> BuildInputs:
        """Collect what decides the engine's bytes."""
        model = self.model
        return BuildInputs(
            family=model.type,
            llm_type=model.llm_type,
            visual_checkpoint=model.visual_checkpoint.identity(),
            llm_checkpoint=model.llm_checkpoint.identity() if model.llm_checkpoint else None,
            lora_checkpoint=model.lora_checkpoint.identity() if model.lora_checkpoint else None,
            num_gpus=self.num_gpus,
            dtype=self.dtype,
            backend=self.backend(),
            quantization=self.engine.quantization,
            limits=self.resolved_limits(),
        )

    def engine_key(self) -> EngineKey:
        """Give the key of the engine to serve: the one named, else the one that the inputs decide."""
        return self.engine.key or self.build_inputs().key()
