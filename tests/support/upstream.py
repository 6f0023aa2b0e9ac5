"""Every form in which NeMo wrote checkpoints, from one classic state; and which model it never wrote in which.

Written with torch alone and nothing of the product (`support.forms`, `tiny.nemo_writer`).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import yaml
from tiny import nemo_writer

from support import forms
from support.archives import CKPT, Archive
from support.states import State, saved

SPEECH: Final = "perception."
MEDIA: Final = (nemo_writer.PROJECTOR, nemo_writer.TOWER, SPEECH)
"""Begins the names of what is no part of a language model."""


class Paths(NamedTuple):
    """Checkpoints that are one model together."""

    visual: Path
    llm: Path | None = None


@dataclass(frozen=True)
class Form:
    """One way in which NeMo wrote a model."""

    write: Callable[[Archive, State, Path], Paths]
    """From an archive without weights and Megatron-core's names in Transformer Engine's spelling, layers numbered."""
    classic: bool = False
    """Whether the names of the local spec may stand in it as they are."""


def read_classic(path: Path) -> tuple[Archive, State]:
    """Take a classic archive apart, for a form to be made of it; what is no tensor is left out."""
    archive = Archive.read(path)
    stored = torch.load(io.BytesIO(archive.members.pop(CKPT)), weights_only=False)
    return archive, {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}


def _place(archive: Archive, folder: Path) -> Path:
    path = folder / "model.nemo"
    path.write_bytes(archive.to_bytes())
    return path


def _classic(archive: Archive, state: State, folder: Path) -> Paths:
    archive.members[CKPT] = saved(state)
    return Paths(_place(archive, folder))


def _legacy(archive: Archive, state: State, folder: Path) -> Paths:
    """With the two halves of a gate apart, as `swiglu` has them."""
    config = archive.config()
    gated, rotary = config["activation"].endswith("glu"), config["position_embedding_type"] == "rope"
    archive.set_config("mcore_gpt", value=False)
    return _classic(archive, forms.legacy_state(state, apart=gated, rotary=rotary), folder)


def _ranks(tensor: int, pipeline: int, *, legacy: bool = False) -> Callable[[Archive, State, Path], Paths]:
    def write(archive: Archive, state: State, folder: Path) -> Paths:
        archive.set_config("mcore_gpt", value=not legacy)
        ranks = forms.as_ranks(archive, state, tensor=tensor, pipeline=pipeline, legacy=legacy)
        return Paths(_place(ranks, folder))

    return write


def _distributed(archive: Archive, state: State, folder: Path) -> Paths:
    """Of a model that hears its language model alone, as NeMo's script for its export makes it."""
    if any(name.startswith(SPEECH) for name in state):
        return _apart(archive, state, folder, _distributed)
    archive.members |= torch_dist(state, "model_weights")
    return Paths(_place(archive, folder))


def _zarr(archive: Archive, state: State, folder: Path) -> Paths:
    if any(name.startswith(SPEECH) for name in state):
        return _apart(archive, state, folder, _zarr)
    return Paths(_place(forms.as_zarr(archive, forms.stacked(state)), folder))


def _apart(archive: Archive, state: State, folder: Path, write: Callable[[Archive, State, Path], Paths]) -> Paths:
    """What has to do with media in the classic form, and the language model in another."""
    media = {name: tensor for name, tensor in state.items() if name.startswith(MEDIA)}
    language = {name: tensor for name, tensor in state.items() if name not in media}
    (folder / "llm").mkdir()
    llm = write(Archive(dict(archive.members)), language, folder / "llm").visual
    return Paths(_classic(archive, media, folder).visual, llm)


def torch_dist(state: State, weights: str) -> dict[str, bytes]:
    """The members of a `torch_dist` folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / weights
        nemo_writer.write_distributed(folder, forms.stacked(state))
        return {f"{weights}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


FUNCTIONS: Final = {
    # NeMo 1's `activation` and `openai_gelu`: NeMo 2's function.
    ("fast-swiglu", False): "torch.nn.functional.silu",
    ("geglu", True): "nemo.collections.llm.fn.activation.openai_gelu",
    ("gelu", True): "nemo.collections.llm.fn.activation.openai_gelu",
    ("gelu", False): "torch._C._nn.gelu",
    ("squared-relu", False): "nemo.collections.llm.fn.activation.squared_relu",
}
KEPT: Final = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"),
    *("layernorm_epsilon", "position_embedding_type", "rotary_base", "seq_len_interpolation_factor", "window_size"),
    *("share_embeddings_and_output_weights", "num_moe_experts", "moe_router_topk"),
)
"""Keys of a language model that both have."""


def nemo2_language(config: Mapping[str, Any]) -> dict[str, Any]:
    """NeMo 2's words for the language model of NeMo 1's configuration."""
    activation = config["activation"]
    language = {key: config[key] for key in KEPT if key in config} | {
        "_target_": "nemo.collections.llm.gpt.model.base.GPTConfig",
        "seq_length": config["encoder_seq_length"],
        "normalization": "RMSNorm" if config["normalization"] == "rmsnorm" else "LayerNorm",
        "layernorm_zero_centered_gamma": (
            config["normalization"] == "layernorm1p"
            or config.get("layernorm_zero_centered_gamma", False)
            or activation == "geglu"  # NeMo 2's Gemma stores its norms less one, NeMo 1's does not
        ),
        "activation_func": {"_target_": FUNCTIONS[activation, config.get("openai_gelu", False)], "_call_": False},
        "gated_linear_unit": activation.endswith("glu"),
        "add_bias_linear": config["bias"],
        "rotary_percent": config.get("rotary_percentage", 1.0),
    }
    if config.get("scale_positional_embedding"):
        language |= {"scale_factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "old_context_len": 8192}
    return language


def _nemo2(described: Mapping[str, Any], archive: Archive, state: State, folder: Path) -> Path:
    """A folder; NeMo 2's tokenizer is the archive's."""
    [tokenizer] = [content for name, content in archive.members.items() if name.endswith("tokenizer.model")]
    members = torch_dist(state, "weights") | {
        "context/model.yaml": yaml.safe_dump({"config": described, "tokenizer": {"_target_": "a.B"}}).encode(),
        "context/io.json": b"{}",
        "context/nemo_tokenizer/tokenizer.model": tokenizer,
    }
    return forms.unpack(Archive(members), folder)


def _less_one(state: State, config: Mapping[str, Any]) -> State:
    """The norms of NeMo 2's Gemma."""
    if config["activation"] != "geglu":
        return state
    return {name: tensor - 1 if "norm" in name else tensor for name, tensor in state.items()}


def _nemo2_whole(archive: Archive, state: State, folder: Path) -> Paths:
    config = archive.config()
    kind = config["mm_cfg"]["mm_mlp_adapter_type"]
    described = forms.VISUAL | {
        "language_transformer_config": nemo2_language(config),
        "vision_projection_config": {"_target_": "a.MultimodalProjectorConfig", "projector_type": kind},
        "vision_feature_layer": config["mm_cfg"]["vision_encoder"]["vision_select_layer"],
    }
    named = {forms.nemo2_name(name): tensor for name, tensor in state.items()}
    return Paths(_nemo2(described, archive, named, folder / "nemo2"))


def _nemo2_language(archive: Archive, state: State, folder: Path) -> Paths:
    def write(archive: Archive, language: State, folder: Path) -> Paths:
        config = archive.config()
        named = {name.replace("model.", "module.", 1): tensor for name, tensor in _less_one(language, config).items()}
        return Paths(_nemo2(nemo2_language(config), archive, named, folder / "nemo2"))

    return _apart(archive, state, folder, write)


FORMS: Final[dict[str, Form]] = {
    "classic": Form(_classic, classic=True),
    "TP 2": Form(_ranks(2, 1), classic=True),
    "TP 4": Form(_ranks(4, 1), classic=True),
    "PP 2": Form(_ranks(1, 2), classic=True),
    "TP 2, PP 2": Form(_ranks(2, 2), classic=True),
    "TP 4, PP 2": Form(_ranks(4, 2), classic=True),
    "torch_dist": Form(_distributed),
    "zarr": Form(_zarr),
    "legacy": Form(_legacy),
    "legacy, TP 2": Form(_ranks(2, 1, legacy=True)),
    "legacy, TP 4, PP 2": Form(_ranks(4, 2, legacy=True)),
    "NeMo 2": Form(_nemo2_whole),
    "NeMo 2, language model": Form(_nemo2_language),
}

MODELS: Final = {
    # As a table calls it: its name in `support.language_cases`.
    "Llama": "llama",
    "Llama 3.1": "llama 3.1",
    "tied Llama": "llama, tied, null groups, zero-centred norms",
    "Mistral": "mistral, a window",
    "Mixtral": "mixtral",
    "Gemma": "gemma",
    "Falcon 7B": "falcon, old",
    "Falcon 40B": "falcon, new",
    "StarCoder": "starcoder",
    "StarCoder2": "starcoder 2",
    "Nemotron": "nemotron",
    "GPT": "gpt-2",
}
FAMILIES: Final = ("neva", "video-neva", "lita", "vita", "vila", "salm")


class Absent(NamedTuple):
    """Cells of the matrix that upstream has not."""

    rows: frozenset[str]
    forms: frozenset[str]
    why: str


def _forms(*parts: str) -> frozenset[str]:
    return frozenset(name for name in FORMS if any(part in name for part in parts))


ABSENT: Final = (
    Absent(
        frozenset({"Falcon 7B", "StarCoder"}),
        _forms("TP 2", "TP 4"),
        "one key for all heads: Megatron shares out whole groups, and refuses more ranks than there are",
    ),
    Absent(
        frozenset({"Llama 3.1", "Mistral", "Mixtral", "Gemma", "Falcon 7B", "Falcon 40B", "StarCoder", "StarCoder2"}),
        _forms("legacy"),
        "NeMo had what sets it apart with Megatron-core only, and its converters write those names",
    ),
    Absent(frozenset({"Falcon 7B", "Falcon 40B"}), _forms("NeMo 2"), "NeMo 2 has no Falcon"),
    Absent(
        frozenset({"Gemma", "StarCoder", "StarCoder2", "Nemotron", "GPT", "tied Llama"}),
        frozenset({"NeMo 2"}),
        "NeMo 2's recipes for models that see have language models of Llama's kind",
    ),
    Absent(frozenset(FAMILIES) - {"neva"}, frozenset({"NeMo 2"}), "NeMo 2 has NeVA and LLaVA, which see pictures"),
)


def why_absent(row: str, form: str) -> str | None:
    """Say why upstream has no such checkpoint; None: it has."""
    return next((absent.why for absent in ABSENT if row in absent.rows and form in absent.forms), None)


def forms_of(row: str) -> list[str]:
    """List the forms in which upstream wrote a model or a family."""
    return [form for form in FORMS if why_absent(row, form) is None]


def table() -> str:
    """The matrix for people: a cross where upstream wrote a model so, else the number of a reason."""
    lines = ["| | " + " | ".join(FORMS) + " |", "|---|" + ":-:|" * len(FORMS)]
    for row in (*MODELS, *FAMILIES):
        reasons = [why_absent(row, form) for form in FORMS]
        marks = ["x" if why is None else str(1 + [absent.why for absent in ABSENT].index(why)) for why in reasons]
        lines.append(f"| {row} | " + " | ".join(marks) + " |")
    return "\n".join([*lines, "", *(f"{number}. {absent.why}." for number, absent in enumerate(ABSENT, 1))])
