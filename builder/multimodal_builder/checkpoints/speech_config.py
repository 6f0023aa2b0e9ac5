"""`perception` of a SALM checkpoint's configuration: front end, speech encoder and modality adapter, typed.

Names and defaults are NeMo's. What a table names must have one of its values: this version computes nothing else.
"""

from __future__ import annotations

from math import log2
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, model_validator

from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.config import Count, Section, TunedConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class PreprocessorSection(Section):
    """`perception.preprocessor`."""

    target: str = Field(alias="_target_")
    sample_rate: Count = 16_000
    window_size: Annotated[float, Field(gt=0)] = 0.02
    """Seconds."""
    window_stride: Annotated[float, Field(gt=0)] = 0.01
    """Seconds."""
    window: str = "hann"
    normalize: Any = "per_feature"
    n_fft: Count | None = None
    """Absent: the next power of two above the window."""
    preemph: float | None = 0.97
    features: Count = 64
    lowfreq: float = 0
    highfreq: float | None = None
    """Absent: half the sample rate."""
    log: bool = True
    log_zero_guard_type: str = "add"
    log_zero_guard_value: Annotated[float, Field(gt=0)] = 2**-24
    frame_splicing: int = 1
    exact_pad: bool = False
    mag_power: float = 2.0
    mel_norm: str | None = "slaney"


class ConformerSection(Section):
    """`perception.encoder` and `perception.modality_adapter`."""

    target: str = Field(alias="_target_")
    feat_in: Count
    feat_out: int | None = -1
    n_layers: Count
    d_model: Count
    use_bias: bool = True
    subsampling: str | None = "striding"
    subsampling_factor: Count = 4
    subsampling_conv_channels: int = -1
    """-1: as many as `d_model`."""
    causal_downsampling: bool = False
    reduction: str | None = None
    ff_expansion_factor: Count = 4
    self_attention_model: str = "rel_pos"
    n_heads: Count = 4
    att_context_size: Any = None
    att_context_style: str = "regular"
    xscaling: bool = True
    conv_kernel_size: Count = 31
    conv_norm_type: str = "batch_norm"
    conv_context_size: Any = None

    @property
    def channels(self) -> int:
        """Of the subsampling's convolutions."""
        return self.d_model if self.subsampling_conv_channels < 0 else self.subsampling_conv_channels

    @property
    def halvings(self) -> int:
        """How often the subsampling halves the frames."""
        return round(log2(self.subsampling_factor))


class PerceptionSection(Section):
    """`perception`; the whole `model_config.yaml` of a perception folder that NeMo's script split off."""

    preprocessor: PreprocessorSection
    encoder: ConformerSection
    modality_adapter: ConformerSection
    output_dim: Count
    """Width of the language model."""
    use_multi_layer_feat: bool = False


class SpeechSection(Section):
    """One data set of `data`."""

    prompt_template: str = "Q: {context}\nA: {answer}"
    context_key: str = "context"
    answer_key: str = "answer"
    end_string: str | None = None
    """Training writes it behind every answer."""
    add_bos: bool = False
    add_sep: bool = False


class SpeechDataSection(Section):
    """`data`."""

    train_ds: SpeechSection = SpeechSection()


class SpeechConfig(TunedConfig):
    """`model_config.yaml` of a SALM checkpoint, as far as it speaks of speech."""

    perception: PerceptionSection
    data: SpeechDataSection = SpeechDataSection()
    alone: bool = False
    """Whether it is the configuration of a perception folder."""
    nemo_version: str = ""
    """Of the NeMo that wrote the checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _perception_alone(cls, document: Any) -> Any:  # noqa: ANN401 (pydantic's own signature)
        """Take the configuration of a perception folder for what it is a part of."""
        if isinstance(document, dict) and "perception" not in document and "modality_adapter" in document:
            return {"perception": document, "alone": True}
        return document


PREPROCESSOR: Final[Mapping[str, tuple[object, ...]]] = {
    "window": ("hann",),
    "normalize": ("per_feature",),
    "log": (True,),
    "log_zero_guard_type": ("add",),
    "frame_splicing": (1,),
    "exact_pad": (False,),
    "mag_power": (2.0,),
    "mel_norm": ("slaney",),
}
CONFORMER: Final[Mapping[str, tuple[object, ...]]] = {
    "feat_out": (-1, None),
    "subsampling": ("dw_striding",),
    "subsampling_factor": (2, 4, 8, 16),
    "causal_downsampling": (False,),
    "reduction": (None,),
    "self_attention_model": ("rel_pos",),
    "att_context_size": (None, [-1, -1], [[-1, -1]]),
    "att_context_style": ("regular",),
    "conv_norm_type": ("batch_norm",),
    "conv_context_size": (None,),
}
PERCEPTION: Final[Mapping[str, tuple[object, ...]]] = {"use_multi_layer_feat": (False,)}
DATA: Final[Mapping[str, tuple[object, ...]]] = {"add_bos": (False,), "add_sep": (False,)}

_TABLES: Final = (
    ("perception", PERCEPTION),
    ("perception.preprocessor", PREPROCESSOR),
    ("perception.encoder", CONFORMER),
    ("perception.modality_adapter", CONFORMER),
    ("data.train_ds", DATA),
)
TARGETS: Final = (
    ("perception.preprocessor", "AudioToMelSpectrogramPreprocessor"),
    ("perception.encoder", "ConformerEncoder"),
    ("perception.modality_adapter", "ConformerEncoder"),
)
"""Classes that the sections must name, wherever NeMo keeps them."""


def check_speech(config: SpeechConfig, at: str) -> Iterator[Failure]:
    """List everything that this version cannot compute, and every contradiction.

    Args:
        config: The checkpoint's.
        at: What to call the configuration in an error.
    """
    for section, table in _TABLES:
        for key, allowed in table.items():
            value = attrgetter(f"{section}.{key}")(config)
            if value not in allowed:
                yield _unsupported(f"{at}: {section}.{key}", value, allowed)
    for section, name in TARGETS:
        value = attrgetter(f"{section}.target")(config)
        if value.rpartition(".")[2] != name:
            yield _unsupported(f"{at}: {section}._target_", value, (name,))
    yield from _check_sizes(config.perception, at)


def _check_sizes(perception: PerceptionSection, at: str) -> Iterator[Failure]:
    encoder, adapter = perception.encoder, perception.modality_adapter
    pairs = (("encoder", encoder, perception.preprocessor.features), ("modality_adapter", adapter, encoder.d_model))
    for name, conformer, width in pairs:
        place = f"{at}: perception.{name}"
        if conformer.feat_in != width:
            yield _contradiction(f"{place}.feat_in", f"is {conformer.feat_in}, but what comes before gives {width}")
        if conformer.feat_in % conformer.subsampling_factor:
            yield _contradiction(f"{place}.feat_in", f"{conformer.feat_in} is no multiple of subsampling_factor")
        if conformer.d_model % conformer.n_heads or conformer.d_model % 2:
            yield _contradiction(f"{place}.d_model", f"{conformer.d_model} has no whole even share for each head")
        if conformer.conv_kernel_size % 2 == 0:
            yield _contradiction(f"{place}.conv_kernel_size", f"{conformer.conv_kernel_size} has no middle")


def _unsupported(at: str, value: object, allowed: tuple[object, ...]) -> Failure:
    return Failure(
        reason=Reason.UNSUPPORTED_MODEL,
        at=at,
        problem=f"is {value!r}, but this version computes only {' or '.join(map(repr, allowed))}",
        remedy="use a SALM checkpoint with a FastConformer encoder and a Conformer adapter, as NeMo's examples train",
    )


def _contradiction(at: str, problem: str) -> Failure:
    return Failure(
        reason=Reason.CHECKPOINT_CONFIG,
        at=at,
        problem=problem,
        remedy="correct it: it must be as in training",
    )
