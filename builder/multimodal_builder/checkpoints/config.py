"""`model_config.yaml`: the keys that decide a model, typed and checked; all others are NeMo's own business."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

CONFIG_NAME: Final = "model_config.yaml"
SHOWN: Final = 60
"""Characters of a wrong value that an error shows."""

Count = Annotated[int, Field(ge=1, le=10_000_000)]


class Section(BaseModel):
    """Keys of NeMo's; those that are not named here have no part in a conversion."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class LlmSection(Section):
    """`mm_cfg.llm`."""

    freeze: bool = False
    """A frozen language model is not in the archive."""
    model_type: str = "nvgpt"
    """Decides the pieces at the place of media."""


class ClipSection(Section):
    """A tower of NeMo's own: `vision` of a CLIP's `model_config.yaml`; defaults are NeMo's."""

    img_h: Count
    img_w: Count
    patch_dim: Count
    num_channels: Count = 3
    class_token_length: Annotated[int, Field(ge=0)] | None = None
    """Absent or 0: none."""
    preprocess_layernorm: bool = False
    num_layers: Count
    hidden_size: Count
    ffn_hidden_size: Count
    num_attention_heads: Count
    kv_channels: Count | None = None
    normalization: str = "layernorm"
    layernorm_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    activation: str = "gelu"
    openai_gelu: bool = False
    bias_activation_fusion: bool = False
    layerscale: bool = False
    megatron_legacy: bool = False
    """Whether the fused attention input has all queries, then all keys, then all values."""


class ParallelConfig(Section):
    """How a model was trained by several ranks, and what decides how their slices are put together."""

    tensor_model_parallel_size: Count = 1
    pipeline_model_parallel_size: Count = 1

    @property
    def tied(self) -> bool:
        """Whether a head is the embedding."""
        return False

    @property
    def gated(self) -> bool:
        """Whether the first layer of each feed-forward block has a gate."""
        return False

    @property
    def kinds_apart(self) -> bool:
        """Whether a fused attention input has all queries, then all keys, then all values."""
        return False


class ClipModelConfig(ParallelConfig):
    """The configuration of a whole CLIP, as far as NeVA reads it."""

    vision: ClipSection

    @property
    def kinds_apart(self) -> bool:
        """Whether a fused attention input has all queries, then all keys, then all values."""
        return self.vision.megatron_legacy


class VisionSection(Section):
    """`mm_cfg.vision_encoder`."""

    from_pretrained: str
    """Folder or hub name of the tower that training started from."""
    from_hf: bool = False
    """Whether the tower is a Hugging Face model, or one of NeMo's own."""
    patch_dim: Count | None = 14
    """None, as for NeMo 2: the tower's own; so are the next two."""
    crop_size: tuple[Count, Count] | None = None
    """[height, width]."""
    hidden_size: Count | None = 1024
    vision_select_layer: int = -2
    vision_select_feature: str = "patch"
    class_token_length: Annotated[int, Field(ge=0)] = 1
    megatron: ClipSection | None = None
    """A tower of Megatron-core's own, whose sizes NeMo 2 keeps in the checkpoint; NeMo 1 has no such key."""


class LitaSection(Section):
    """`mm_cfg.lita`."""

    lita_video_arch: str = "temporal_spatial_pool"
    visual_token_format: str = "v1"  # noqa: S105 (a format, no secret)
    sample_frames: Count = 4
    """Frames kept whole."""


class MultimodalSection(Section):
    """`mm_cfg`."""

    llm: LlmSection = LlmSection()
    vision_encoder: VisionSection
    mm_mlp_adapter_type: str = "linear"
    crop_size: tuple[Count, Count] = (224, 224)
    """[height, width] for a tower of NeMo's own: read from here, beside `vision_encoder`, by NeMo."""
    use_im_start_end: bool = False
    use_lita: bool = False
    lita: Annotated[LitaSection, BeforeValidator(lambda section: section or {})] = LitaSection()


def _token_list(value: object) -> object:
    """Take the list out of the dictionary that Hugging Face tokenizers are given in NeMo."""
    key = "additional_special_tokens"
    return (value.get(key) if isinstance(value, dict) and set(value) == {key} else value) or ()


class TokenizerSection(Section):
    """`tokenizer`."""

    library: str
    type: str | None = None
    """Hub name of a Hugging Face tokenizer, or a kind of the library megatron."""
    model: str | None = None
    """`nemo:<member>` for a file in the archive."""
    vocab_file: str | None = None
    merge_file: str | None = None
    special_tokens: dict[str, str] | None = None
    additional_special_tokens: Annotated[tuple[str, ...], BeforeValidator(_token_list)] = ()
    """What training added to the tokenizer."""


class DataSection(Section):
    """`data`."""

    media_type: str = "image"
    num_frames: int = 1
    """Of a video; -1 is all."""
    splice_single_frame: str | None = None
    """The one frame of a video that is seen: `first`, `middle` or `last`."""
    sep_image_conv_front: bool = False
    """Whether the medium is moved in front, into a turn of its own."""
    image_aspect_ratio: str = "square"
    conv_template: str = "nvgpt"


class LoraSection(Section):
    """`peft.lora_tuning`."""

    adapter_dim: Count | None = None
    """Rank; absent: that of the weights."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Adapters are scaled by alpha / rank; absent: the rank."""


class PeftSection(Section):
    """`peft`."""

    lora_tuning: LoraSection | None = None


class CustomizationSection(Section):
    """`mcore_customization_config`: what Falcon's layers differ in."""

    new_decoder_architecture: bool = False
    """A norm for the attention and one for the feed-forward block, not one for both."""
    parallel_attention: bool = False
    """Both blocks read the layer's input."""


class TunedConfig(Section):
    """NeMo's `model` section, as far as it speaks of adapters."""

    peft: PeftSection | None = None

    @property
    def lora(self) -> LoraSection:
        """How adapters were trained."""
        return (self.peft and self.peft.lora_tuning) or LoraSection()


class LanguageConfig(TunedConfig, ParallelConfig):
    """NeMo's `model` section, as far as it describes a language model; field names and defaults are NeMo's."""

    num_layers: Count
    hidden_size: Count
    ffn_hidden_size: Count
    num_attention_heads: Count
    num_query_groups: Count | None = None
    """Key/value heads; absent: as many as heads."""
    multi_query_mode: bool = False
    """Older models: one key/value head for all."""
    kv_channels: Count | None = None
    """Head size; absent: hidden_size / heads."""
    max_position_embeddings: Count | None = None
    encoder_seq_length: Count
    layernorm_epsilon: Annotated[float, Field(gt=0, lt=1)]
    normalization: str = "layernorm"
    layernorm_zero_centered_gamma: bool = False
    activation: str = "gelu"
    openai_gelu: bool = False
    """GELU by its tanh approximation, whatever `activation` names."""
    bias: bool = True
    position_embedding_type: str = "learned_absolute"
    rotary_percentage: float = 1.0
    rotary_base: Annotated[float, Field(gt=0)] = 10_000.0
    seq_len_interpolation_factor: float | None = None
    scale_positional_embedding: bool = False
    """Llama 3.1's scaled rotary positions; NeMo 1 has these four numbers fixed, NeMo 2 in its configuration."""
    scale_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: Count = 8192
    rotary_interleaved: bool = False
    window_size: tuple[int, int] | None = None
    """[positions that attention looks back, 0]; absent or negative: all."""
    apply_embedding_scaling: bool | None = None
    """Gemma: embeddings, media among them, times the square root of their width."""
    normalize_attention_scores: bool = True
    transformer_block_type: str = "pre_ln"
    share_embeddings_and_output_weights: bool = True
    num_moe_experts: int | None = None
    moe_router_topk: Count = 2
    moe_router_pre_softmax: bool = False
    """Whether the weights of the chosen experts come from a softmax over all, so that they do not sum to one."""
    mcore_customization_config: CustomizationSection = CustomizationSection()
    tokenizer: TokenizerSection

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.share_embeddings_and_output_weights

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.num_query_groups or (1 if self.multi_query_mode else self.num_attention_heads)

    @property
    def zero_centered(self) -> bool:
        """Whether the weights of norms are stored less one."""
        return self.layernorm_zero_centered_gamma or self.normalization == "layernorm1p"

    @property
    def window(self) -> int | None:
        """Positions that attention looks back, as NeMo's converters exchange them with transformers; None: all."""
        back = self.window_size[0] if self.window_size else -1
        return back if 0 <= back < self.positions else None

    @property
    def gated(self) -> bool:
        """Whether the first layer of each feed-forward block has a gate: NeMo's names of such activations say so."""
        return self.activation.endswith("glu")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def positions(self) -> int:
        """Longest sequence that the model was made for."""
        return self.max_position_embeddings or self.encoder_seq_length


class ModelConfig(LanguageConfig):
    """NeMo's `model` section of a NeVA checkpoint."""

    mm_cfg: MultimodalSection
    data: DataSection = DataSection()


ConfigT = TypeVar("ConfigT", bound=BaseModel)
TunedT = TypeVar("TunedT", bound=TunedConfig)


def check_config(document: dict[str, Any], model: type[ConfigT], at: str) -> ConfigT:
    """Take the keys that decide a model from a whole configuration.

    Args:
        document: NeMo's `model` section.
        model: What has to be in it.
        at: What to call the file in an error.

    Raises:
        ProductError: keys are missing or have wrong values: all of them are named.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        wrong = [_describe(detail["loc"], detail["msg"], detail["type"], detail["input"]) for detail in error.errors()]
        raise config_error(
            f"{at}: {wrong[0][0]}",
            "; ".join(f"{key} {problem}" for key, problem in wrong),
            "correct these keys, or use a checkpoint that NeMo wrote",
        ) from error


def config_error(at: str, problem: str, remedy: str) -> ProductError:
    """Make the error of a configuration that cannot be built."""
    return ProductError(Reason.CHECKPOINT_CONFIG, at=at, problem=problem, remedy=remedy)


def _describe(location: tuple[int | str, ...], message: str, kind: str, value: object) -> tuple[str, str]:
    key = ".".join(map(str, location))
    if kind == "missing":
        return key, "is missing"
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return key, f"is {shown[:SHOWN]}: {message[0].lower()}{message[1:]}"
