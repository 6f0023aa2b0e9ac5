"""Language models of transformers as they lie on disk: their names and configuration stay, their account is checked."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from multimodal_api.families import LlmType
from multimodal_api.logs import FIELDS
from multimodal_builder.checkpoints.checkpoint import Checkpoint
from multimodal_builder.checkpoints.config import LanguageConfig, config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, HuggingFaceFolder
from multimodal_builder.mappings.base import Ignore, Rename
from multimodal_builder.mappings.language_model import LanguageModel
from multimodal_builder.tower_config import validated

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from multimodal_builder.checkpoints.tensors import TensorInfo
    from multimodal_builder.checkpoints.window import Window
    from multimodal_builder.mappings.base import Rule, Shape

log = logging.getLogger(__name__)

_GPT: Final = (LlmType.GPTNEXT, LlmType.GPT, LlmType.STARCODER)
_DROPPED: Final = ("_name_or_path", "torch_dtype", "dtype", "transformers_version")
"""Keys of a configuration that are said anew, or say nothing of the model."""
_CODE: Final = "auto_map"
"""Names a model's own code, which is never run."""
HEAD: Final = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Kind:
    """One of transformers' classes."""

    name: str
    types: tuple[LlmType, ...]
    body: str = "model."
    """In front of all names but the head's; checkpoints of the body alone leave it off."""
    layers: str = "layers."
    embedding: str = "embed_tokens.weight"
    norms: tuple[str, ...] = ("norm.weight",)
    """Behind the last layer."""
    positions: str | None = None
    """Embedding of positions."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Keys that configurations of these leave out, as parts of others do."""


_BIASED: Final = ("norm.weight", "norm.bias")
_TRANSFORMER: Final[dict[str, Any]] = {
    "body": "transformer.",
    "layers": "h.",
    "embedding": "wte.weight",
    "norms": ("ln_f.weight", "ln_f.bias"),
}
_GPT2: Final = _TRANSFORMER | {"positions": "wpe.weight"}
_SMALL: Final = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
KINDS: Final[Mapping[str, Kind]] = {
    "llama": Kind(
        "LlamaForCausalLM",
        (LlmType.LLAMA,),
        defaults=_SMALL | {"intermediate_size": 11008, "max_position_embeddings": 2048},
    ),
    "mistral": Kind(
        "MistralForCausalLM",
        (LlmType.LLAMA,),
        defaults=_SMALL | {"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8},
    ),
    "mixtral": Kind("MixtralForCausalLM", (LlmType.MIXTRAL,)),
    "gemma": Kind("GemmaForCausalLM", (LlmType.GEMMA,), defaults={"tie_word_embeddings": True, "head_dim": 256}),
    "falcon": Kind(
        "FalconForCausalLM",
        (LlmType.FALCON,),
        **(_TRANSFORMER | {"embedding": "word_embeddings.weight"}),
        defaults={"tie_word_embeddings": True, "multi_query": True, "max_position_embeddings": 2048},
    ),
    "starcoder2": Kind("Starcoder2ForCausalLM", _GPT, norms=_BIASED, defaults={"tie_word_embeddings": True}),
    "nemotron": Kind("NemotronForCausalLM", _GPT, norms=_BIASED),
    "gpt2": Kind("GPT2LMHeadModel", _GPT, **_GPT2, defaults={"tie_word_embeddings": True}),
    "gpt_bigcode": Kind(
        "GPTBigCodeForCausalLM",
        _GPT,
        **_GPT2,
        defaults={"tie_word_embeddings": True, "multi_query": True},
    ),
}
"""By `model_type`."""

_IGNORED: Final = (
    Ignore("*.rotary_emb.inv_freq", why="computed from the configuration"),
    Ignore("*.attn.bias", why="GPT-2's mask, stored by older transformers"),
    Ignore("*.attn.masked_bias", why="the same"),
)

_Size = Annotated[int, Field(ge=1, le=10_000_000)]


def _named(*names: str) -> Any:  # noqa: ANN401 -- as pydantic's own
    return Field(validation_alias=AliasChoices(*names))


class _Sizes(BaseModel):
    """What `config.json` says of sizes, in all its spellings."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden: _Size = _named("hidden_size", "n_embd")
    ffn: _Size | None = Field(None, validation_alias=AliasChoices("intermediate_size", "n_inner", "ffn_hidden_size"))
    layers: _Size = _named("num_hidden_layers", "n_layer")
    heads: _Size = _named("num_attention_heads", "n_head")
    kv_heads: _Size | None = Field(None, validation_alias=AliasChoices("num_key_value_heads", "num_kv_heads"))
    head_dim: _Size | None = None
    positions: _Size = _named("max_position_embeddings", "n_positions")
    multi_query: bool = False
    new_decoder_architecture: bool = False
    """Falcon: as many key/value heads as `num_kv_heads` says, whatever `multi_query` says."""
    tie_word_embeddings: bool = False

    @property
    def groups(self) -> int:
        """Key/value heads."""
        if self.multi_query and not self.new_decoder_architecture:
            return 1
        return self.kv_heads or self.heads


def describe(
    document: Mapping[str, Any], infos: Mapping[str, TensorInfo], names: Mapping[str, str], *, at: str
) -> LanguageModel:
    """Describe a model by its configuration and the names of its tensors.

    The first layer stands for all: what is in it is wanted of each, with the same shapes, and nothing else is.

    Args:
        document: `config.json`, or the part of it that is the language model's.
        infos: Its tensors.
        names: Theirs in the model's own folder, where `infos` has others.
        at: What to call the configuration in an error.

    Raises:
        ProductError: a key is missing or wrong, or the class is not known.
    """
    kind = KINDS.get(str(document.get("model_type")))
    if kind is None:
        raise config_error(
            f"{at}: model_type",
            f"is {str(document.get('model_type'))[:60]!r}, but this version takes {', '.join(KINDS)}",
            "use another language model",
        )
    if _CODE in document:
        log.info("left out", extra={FIELDS: {"key": _CODE, "because": "a model's own code is never run"}})
    sizes = validated(_Sizes, {**kind.defaults, **document}, at)
    own = {names.get(name, name): info.shape for name, info in infos.items()}
    embedding = kind.body + kind.embedding
    rows = own[embedding][0] if own.get(embedding) else 0
    tied = sizes.tie_word_embeddings
    rules: tuple[Rule, ...] = (
        *_IGNORED,
        *([Ignore(f"*{HEAD}", why="the embedding once more")] if tied else []),
        *(Rename(name, names.get(name, name)) for name in infos),
    )
    carried = {key: value for key, value in document.items() if key not in {*_DROPPED, _CODE}}
    return LanguageModel(
        config={**carried, "architectures": [kind.name], "vocab_size": rows, "tie_word_embeddings": tied},
        rules=rules,
        parameters=_parameters(kind, sizes, own, rows),
        layers=sizes.layers,
        hidden=sizes.hidden,
        ffn=sizes.ffn or 4 * sizes.hidden,
        heads=sizes.heads,
        groups=sizes.groups,
        head_size=sizes.head_dim or sizes.hidden // sizes.heads,
        rows=rows,
        positions=sizes.positions,
        tied=tied,
    )


def _parameters(kind: Kind, sizes: _Sizes, own: Mapping[str, Shape], rows: int) -> dict[str, Shape]:
    stored = {name: shape for name, shape in own.items() if not any(_matches(rule, name) for rule in _IGNORED)}
    layers = kind.body + kind.layers
    first = {
        name.removeprefix(f"{layers}0."): shape for name, shape in stored.items() if name.startswith(f"{layers}0.")
    }
    outer = {name: shape for name, shape in stored.items() if not name.startswith(layers) and name != HEAD}
    head = {} if sizes.tie_word_embeddings else {HEAD: (rows, sizes.hidden)}
    every = {f"{layers}{number}.{name}": shape for number in range(sizes.layers) for name, shape in first.items()}
    missing = {} if first else {f"{layers}0": ()}  # a model without layers is none
    norms: dict[str, Shape] = {kind.body + name: (sizes.hidden,) for name in kind.norms}
    places = {kind.body + kind.positions: (sizes.positions, sizes.hidden)} if kind.positions else {}
    known = {kind.body + kind.embedding: (rows, sizes.hidden), **norms, **places}
    return {**outer, **known, **every, **head, **missing}


def _matches(rule: Ignore, name: str) -> bool:
    return re.fullmatch(re.escape(rule.source).replace(r"\*", ".*"), name) is not None


def is_language_folder(path: Path) -> bool:
    """Tell whether a path is a folder of transformers, rather than NeMo's."""
    return (path / CONFIG_NAME).is_file()


class _FolderMembers:
    """The files of such a folder; links are followed, as transformers' own caches have them."""

    def __init__(self, folder: HuggingFaceFolder) -> None:
        self.at = folder.path.name
        self._folder = folder

    def names(self) -> Collection[str]:
        """Give the names of all files."""
        return [path.name for path in self._folder.path.iterdir() if path.is_file()]

    def open(self, name: str) -> Window:
        """Give a file's bytes."""
        return self._folder.file(name)

    def close(self) -> None:
        """Close what is open."""
        self._folder.close()


def open_language_folder(path: Path) -> Checkpoint[LanguageConfig]:
    """Open a language model of transformers.

    Raises:
        ProductError: its configuration or its weights cannot be read, or it is of a class that is not known.
    """
    folder = HuggingFaceFolder(path)
    with ExitStack() as opened:
        opened.callback(folder.close)
        document = folder.json(CONFIG_NAME)
        tensors = folder.tensors()
        infos = tensors.infos()
        kind = KINDS.get(str(document.get("model_type")))
        bare = kind is not None and not any(name.startswith(kind.body) for name in infos)
        names = {name: kind.body + name for name in infos if name != HEAD} if kind and bare else {}
        model = describe(document, infos, names, at=f"{path.name}/{CONFIG_NAME}")
        config = LanguageConfig.model_validate({
            "num_layers": model.layers,
            "hidden_size": model.hidden,
            "ffn_hidden_size": model.ffn,
            "num_attention_heads": model.heads,
            "num_query_groups": model.groups,
            "kv_channels": model.head_size,
            "encoder_seq_length": model.positions,
            "layernorm_epsilon": 1e-5,  # the class reads its own
            "tokenizer": {"library": "huggingface"},
        })  # fmt: skip
        checkpoint = Checkpoint(path, _FolderMembers(folder), CONFIG_NAME, config, tensors, ready=model)
        opened.pop_all()
        return checkpoint
