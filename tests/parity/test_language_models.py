"""Every kind of language model: transformers' class, written as NeMo's archive, converted, and loaded again.

The writer (`tests/support/megatron_writer.py`) and the product's tables share no code. Weights are the same bits but
for the offsets of norms, so that logits in float32 differ by rounding alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import nemo_writer
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Starcoder2Config,
)

from multimodal_api.build import ExitCode
from multimodal_api.engine import Dtype
from multimodal_api.families import Family, LlmType
from multimodal_api.worker_protocol import Sampling
from multimodal_builder.canonical import write_canonical
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.inspection import inspect
from multimodal_builder.main import main
from multimodal_builder.mappings.base import SplitGated, SplitQkv, TransposeQkv
from multimodal_modeling.llm import LanguageModel
from multimodal_modeling.model import MultimodalModel
from multimodal_modeling.sampling import Chooser, scores_of
from multimodal_modeling.splice import splice
from support.archives import DISTRIBUTED, Archive
from support.megatron_writer import PADDED, write_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

HEAD = "model.output_layer.weight"
VOCAB = 500
TOLERANCE = 1e-5
"""Largest difference of logits in float32, in parts of the largest logit."""
WRONG = 1e-2
"""A mistake moves logits by more than this part."""
HIDDEN = 64
FFN = 96
HEADS = 4
TOWER_WIDTH = 64
POSITIONS = 16_384
TABLE = 96
"""Learned positions."""


@dataclass(frozen=True)
class Case:
    """A model of transformers, and NeMo's configuration of it."""

    llm_type: LlmType
    config: PreTrainedConfig
    settings: dict[str, Any]
    distributed: bool = True
    local: bool = False
    norms: float = 0.0
    """NeMo's weights of norms are transformers' and this."""
    model: str = field(kw_only=True)
    """The class that has to come out."""


ROPE = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
SWIGLU = {"normalization": "rmsnorm", "activation": "fast-swiglu", "bias": False, "position_embedding_type": "rope"}
GPT = {"normalization": "layernorm", "activation": "gelu", "bias": True, "position_embedding_type": "rope"}
LEARNED = GPT | {
    "position_embedding_type": "learned_absolute",
    "encoder_seq_length": TABLE,
    "max_position_embeddings": TABLE,
}
LEARNED_SIZES = {
    "vocab_size": VOCAB,
    "n_embd": HIDDEN,
    "n_inner": FFN,
    "n_layer": 2,
    "n_head": HEADS,
    "n_positions": TABLE,
}


def falcon(*, new: bool, groups: int, bias: bool = False) -> FalconConfig:
    return FalconConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        ffn_hidden_size=FFN,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_kv_heads=groups,
        multi_query=groups == 1,
        new_decoder_architecture=new,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bias=bias,
    )


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | parameters}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

CASES = {
    "llama": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, **rope(rope_theta=5e5), num_key_value_heads=2),
        SWIGLU | {"num_query_groups": 2, "rotary_base": 500_000},
        model="LlamaForCausalLM",
    ),
    "llama, biases, one key": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
        SWIGLU | {"num_query_groups": None, "multi_query_mode": True, "bias": True},
        distributed=False,
        local=True,
        model="LlamaForCausalLM",
    ),
    "llama, tied, null groups, zero-centred norms": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE | {"tie_word_embeddings": True}),
        SWIGLU | {"num_query_groups": None, "layernorm_zero_centered_gamma": True},
        norms=-1.0,
        model="LlamaForCausalLM",
    ),
    "llama 3.1": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, **rope(rope_theta=5e5, **LLAMA3), num_key_value_heads=2, head_dim=32),
        SWIGLU | {"num_query_groups": 2, "rotary_base": 5e5, "scale_positional_embedding": True, "kv_channels": 32},
        model="LlamaForCausalLM",
    ),
    "llama, positions interpolated": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, **rope(rope_type="linear", factor=4.0), num_key_value_heads=2),
        SWIGLU | {"num_query_groups": 2, "seq_len_interpolation_factor": 4},
        model="LlamaForCausalLM",
    ),
    "mistral, a window": Case(
        LlmType.LLAMA,
        MistralConfig(**ROPE, num_key_value_heads=2, head_dim=24, sliding_window=8),
        SWIGLU | {"num_query_groups": 2, "kv_channels": 24, "window_size": [8, 0]},
        model="MistralForCausalLM",
    ),
    "mixtral": Case(
        LlmType.MIXTRAL,
        MixtralConfig(
            **ROPE, **rope(rope_theta=1e6), num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
        ),
        SWIGLU | {"num_query_groups": 2, "rotary_base": 1e6, "num_moe_experts": 4, "moe_router_topk": 2},
        model="MixtralForCausalLM",
    ),
    "gemma": Case(
        LlmType.GEMMA,
        GemmaConfig(**ROPE | {"tie_word_embeddings": True}, num_key_value_heads=1, head_dim=40, rms_norm_eps=1e-5),
        SWIGLU
        | {"num_query_groups": 1, "kv_channels": 40, "activation": "geglu", "openai_gelu": True}
        | {"apply_embedding_scaling": True},
        norms=1.0,
        model="GemmaForCausalLM",
    ),
    "falcon, old": Case(
        LlmType.FALCON,
        falcon(new=False, groups=1),
        GPT
        | {"num_query_groups": 1, "bias": False}
        | {"mcore_customization_config": {"new_decoder_architecture": False, "parallel_attention": True}},
        distributed=False,
        model="FalconForCausalLM",
    ),
    "falcon, new": Case(
        LlmType.FALCON,
        falcon(new=True, groups=2, bias=True),
        GPT
        | {"num_query_groups": 2}
        | {"mcore_customization_config": {"new_decoder_architecture": True, "parallel_attention": True}},
        local=True,
        model="FalconForCausalLM",
    ),
    "starcoder": Case(
        LlmType.STARCODER,
        GPTBigCodeConfig(**LEARNED_SIZES, tie_word_embeddings=False),
        LEARNED | {"num_query_groups": 1, "openai_gelu": True},
        model="GPTBigCodeForCausalLM",
    ),
    "starcoder 2": Case(
        LlmType.GPT,
        Starcoder2Config(**ROPE, num_key_value_heads=2),
        GPT | {"num_query_groups": 2, "openai_gelu": True},
        local=True,
        model="Starcoder2ForCausalLM",
    ),
    "nemotron": Case(
        LlmType.GPTNEXT,
        NemotronConfig(**ROPE, **rope(partial_rotary_factor=0.5), num_key_value_heads=2, head_dim=24),
        GPT
        | {"normalization": "layernorm1p", "activation": "squared-relu", "bias": False, "rotary_percentage": 0.5}
        | {"num_query_groups": 2, "kv_channels": 24},
        model="NemotronForCausalLM",
    ),
    "plain norms, a quarter of each head rotated": Case(
        LlmType.GPT,
        NemotronConfig(
            **ROPE,
            **rope(partial_rotary_factor=0.25),
            num_key_value_heads=4,
            hidden_act="gelu",
            attention_bias=True,
            mlp_bias=True,
        ),
        GPT | {"rotary_percentage": 0.25},
        distributed=False,
        norms=1.0,
        model="NemotronForCausalLM",
    ),
    "gpt-2": Case(
        LlmType.GPT,
        GPT2Config(**LEARNED_SIZES),
        LEARNED | {"share_embeddings_and_output_weights": True, "openai_gelu": True},
        distributed=False,
        model="GPT2LMHeadModel",
    ),
    "gpt-2, layernorm1p, untied": Case(
        LlmType.GPTNEXT,
        GPT2Config(**LEARNED_SIZES, tie_word_embeddings=False, activation_function="gelu"),
        LEARNED | {"normalization": "layernorm1p"},
        norms=-1.0,
        model="GPT2LMHeadModel",
    ),
}


def make_reference(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model


def write_checkpoint(
    folder: Path, reference: PreTrainedModel, case: Case, change: Callable[[dict[str, Tensor]], object] | None = None
) -> Path:
    trained = Archive.read(DISTRIBUTED)
    config = trained.config()
    tokenizer = trained.members[config["tokenizer"]["model"].removeprefix("nemo:")]
    config |= {
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "num_layers": 2,
        "num_attention_heads": HEADS,
        "num_query_groups": None,
        "kv_channels": None,
        "rotary_base": 10_000,
        "layernorm_epsilon": getattr(case.config, "rms_norm_eps", 1e-5),
        "encoder_seq_length": POSITIONS,
        "max_position_embeddings": POSITIONS,
        "share_embeddings_and_output_weights": case.config.tie_word_embeddings,
        **case.settings,
    }
    config["mm_cfg"]["mm_mlp_adapter_type"] = "linear"
    config["mm_cfg"]["vision_encoder"]["from_pretrained"] = "clip"
    state = write_state(reference, distributed=case.distributed, local=case.local, norms=case.norms)
    torch.manual_seed(5)
    state[f"{nemo_writer.PROJECTOR}weight"] = torch.randn(HIDDEN, TOWER_WIDTH)
    state[f"{nemo_writer.PROJECTOR}bias"] = torch.randn(HIDDEN)
    if change:
        change(state)
    path = trained.write(folder)  # the tower beside it
    nemo_writer.write_archive(path, config=config, tokenizer=tokenizer, state=state, distributed=case.distributed)
    return path


def convert(path: Path, case: Case) -> Path:
    out = path.parent / "out"
    inspection, plan, opened = inspect(
        CheckpointPaths(visual=path), family=Family.NEVA, llm_type=case.llm_type, dtype=Dtype.FLOAT32, limits=None
    )
    assert inspection.problems == ()
    assert plan is not None
    with opened:
        write_canonical(plan, out, root=out, dtype=None, on_bytes=lambda _: None)
    return out


def load(out: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(out / "llm", dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    loaded: PreTrainedModel = model.eval()
    return loaded


def logits(model: PreTrainedModel, *, far: bool) -> Tensor:
    """Score 32 tokens, id 0 among them; `far` puts the second half as far from the first as positions go."""
    ids = torch.randint(0, VOCAB, (1, 32), generator=torch.Generator().manual_seed(3))
    ids[0, ::9] = 0
    positions = torch.arange(32)
    if far:
        longest: int = model.config.max_position_embeddings
        positions[16:] += longest - 32
    with torch.inference_mode():
        # A mask of ones: without one transformers takes a leap of positions for the next of several sequences.
        output = model(input_ids=ids, position_ids=positions[None], attention_mask=torch.ones_like(ids))
    scores: Tensor = output.logits[0, :, :VOCAB]
    return scores


def difference(found: PreTrainedModel, reference: PreTrainedModel) -> float:
    """Give the largest difference of logits in parts of the largest logit, near and far."""
    worst = 0.0
    for far in (False, True):
        wanted = logits(reference, far=far)
        assert wanted.abs().max() > 1
        worst = max(worst, float((logits(found, far=far) - wanted).abs().max() / wanted.abs().max()))
    return worst


@dataclass(frozen=True)
class Converted:
    case: Case
    reference: PreTrainedModel
    found: PreTrainedModel


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    case: Case = request.param
    reference = make_reference(case.config)
    path = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), reference, case)
    return Converted(case, reference, load(convert(path, case)))


def test_converted_models_score_as_the_original(converted: Converted) -> None:
    assert type(converted.found).__name__ == converted.case.model
    assert converted.found.config.vocab_size == PADDED
    assert difference(converted.found, converted.reference) <= TOLERANCE


def test_served_step_by_step_from_embeddings_they_score_the_same(converted: Converted) -> None:
    """As a worker runs them: a prompt of embeddings, then one token at a time, all through one cache."""
    served = LanguageModel(converted.found)
    ids = torch.randint(0, VOCAB, (24,), generator=torch.Generator().manual_seed(9))
    cache = served.new_cache()
    with torch.inference_mode():
        embeddings = served.embed(ids)
        steps = [served.logits(embeddings[None, :12], cache, last=1)]
        steps += [served.logits(embeddings[None, at : at + 1], cache) for at in range(12, 24)]
        wanted = converted.reference(input_ids=ids[None]).logits[0, 11:]
    found = torch.cat(steps, dim=1)[0, :, :VOCAB]
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE


def contiguous(rule: SplitQkv, array: Any) -> Any:
    size = array.shape[0] // (rule.heads + 2 * rule.groups)
    return array[: rule.heads * size], array[rule.heads * size : -rule.groups * size], array[-rule.groups * size :]


def swapped(_rule: SplitGated, array: Any) -> Any:
    half = array.shape[0] // 2
    return array[half:], array[:half]


def untouched(_rule: object, array: Any) -> Any:
    return (array,)


def only_transposed(_rule: TransposeQkv, array: Any) -> Any:
    return (array.T.copy(),)


BASE = "multimodal_builder.mappings.base"


@pytest.mark.parametrize(
    ("name", "at", "mistake"),
    [
        ("llama", f"{BASE}.SplitQkv.apply", contiguous),
        ("llama, biases, one key", f"{BASE}.SplitGated.apply", swapped),
        ("gpt-2", f"{BASE}.TransposeQkv.apply", only_transposed),
        ("mixtral", f"{BASE}.SplitGated.apply", swapped),
        ("gemma", f"{BASE}.Offset.apply", untouched),
        ("gpt-2, layernorm1p, untied", f"{BASE}.Offset.apply", untouched),
    ],
    ids=[
        "q k v one behind the other",
        "up before gate",
        "GPT-2's heads not taken apart",
        "w3 before w1",
        "Gemma's norms as they are stored",
        "layernorm1p as it is stored",
    ],
)
def test_a_mistake_in_the_weights_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: str, mistake: Callable[..., Any]
) -> None:
    """All shapes fit in each of these: only the numbers can tell."""
    case = CASES[name]
    reference = make_reference(case.config)
    path = write_checkpoint(tmp_path, reference, case)
    monkeypatch.setattr(at, mistake)
    assert difference(load(convert(path, case)), reference) > WRONG


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("llama", {"rope_theta": 10_000.0}),
        ("llama 3.1", {"rope_type": "default"}),
        ("llama 3.1", {"factor": 32.0}),
        ("llama, positions interpolated", {"rope_type": "default"}),
        ("nemotron", {"partial_rotary_factor": 1.0}),
    ],
    ids=["the usual base", "Llama 3.1 unscaled", "Llama 3.2's factor", "not interpolated", "whole heads rotated"],
)
def test_a_mistake_in_the_positions_is_seen(tmp_path: Path, name: str, wrong: dict[str, Any]) -> None:
    """Such a model works on short prompts, and degenerates with their length."""
    case = CASES[name]
    reference = make_reference(case.config)
    out = convert(write_checkpoint(tmp_path, reference, case), case)
    path = out / "llm" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= wrong
    path.write_text(json.dumps(config))
    assert difference(load(out), reference) > WRONG


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt-2"])
def test_rows_beyond_the_tokenizer_are_never_chosen(tmp_path: Path, name: str) -> None:
    """Untrained rows may score anything: here they would win every time."""
    case = CASES[name]

    def tempt(state: dict[str, Tensor]) -> None:
        head = state["model.embedding.word_embeddings.weight" if case.config.tie_word_embeddings else HEAD]
        head[VOCAB:] = head[:1] * 1000 * torch.tensor([1.0, -1.0] * 6)[:, None]

    reference = make_reference(case.config)
    out = convert(write_checkpoint(tmp_path, reference, case, tempt), case)
    served = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))
    scores = served.llm.logits(served.llm.embed(torch.tensor([0, 7, 0, 9]))[None], served.llm.new_cache(), last=1)[0, 0]

    def choose(rows: int) -> int:
        return Chooser(Sampling(), prompt_ids=()).choose(scores_of(scores, rows))

    assert served.recipe.vocab_size == VOCAB
    assert choose(served.recipe.vocab_size) == int(scores[:VOCAB].argmax())
    assert choose(PADDED) >= VOCAB


def test_gemma_scales_media_as_it_scales_text(tmp_path: Path) -> None:
    """In training media stand among the embeddings when these are multiplied by the square root of their width."""
    case = CASES["gemma"]
    reference = make_reference(case.config)
    out = convert(write_checkpoint(tmp_path, reference, case), case)
    served = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.arange(10)
    media = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1)) * 0.1
    raw = reference.get_input_embeddings().weight[ids].detach().clone()
    raw[4:7] = media

    def distance(found: Tensor) -> float:
        with torch.inference_mode():
            wanted = reference(inputs_embeds=raw[None] * HIDDEN**0.5).logits[0, :, :VOCAB]
            scores = served.llm.logits(found[None], served.llm.new_cache())[0, :, :VOCAB]
        return float((scores - wanted).abs().max() / wanted.abs().max())

    assert distance(served.prompt_embeddings(ids.tolist(), range(4, 7), media)) <= TOLERANCE
    assert distance(splice(served.llm.embed(ids), media, torch.arange(4, 7))) > WRONG


@pytest.mark.parametrize("name", ["gemma", "gpt-2", "falcon, new"])
def test_models_that_transformers_llava_cannot_hold_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = CASES[name]
    path = write_checkpoint(tmp_path, make_reference(case.config), case)
    arguments = [str(path), str(tmp_path / "out"), "--llm-type", case.llm_type]
    assert main(["convert", *arguments, "--layout", "llava"]) == ExitCode.REFUSED
    assert f"cannot hold a {case.model}" in capsys.readouterr().err
