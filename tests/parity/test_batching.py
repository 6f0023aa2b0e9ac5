"""In-flight batching against transformers, and against itself: an answer does not depend on who else is answered.

Models are random and tiny, but of every class that a checkpoint is converted to.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any, Final

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    NemotronConfig,
    Starcoder2Config,
)

from multimodal_api.worker_protocol import Sampling
from multimodal_modeling.llm import LanguageModel
from multimodal_worker.backends.base import GenerateRequest, Token
from multimodal_worker.batch import Batch, Sequence

pytestmark = pytest.mark.parity

HIDDEN: Final = 64
NEW: Final = 16
SIZES: Final[dict[str, Any]] = {
    "vocab_size": 160,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WIDER: Final = {"hidden_size": 384, "num_attention_heads": 8, "vocab_size": 3000, "initializer_range": 0.1}
"""Beyond the sizes that matrix products treat as small."""
CONFIGS: Final = {
    "llama": LlamaConfig(**SIZES, intermediate_size=128, num_key_value_heads=2),
    "nemotron": NemotronConfig(**SIZES, intermediate_size=128, num_key_value_heads=4),
    "gemma": GemmaConfig(**SIZES, intermediate_size=128, num_key_value_heads=1, head_dim=32),
    "starcoder2": Starcoder2Config(**SIZES, intermediate_size=128, num_key_value_heads=2, sliding_window=24),
    "mixtral": MixtralConfig(**SIZES, intermediate_size=96, num_key_value_heads=2, num_local_experts=4),
    "gpt2": GPT2Config(**SIZES, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0),
    "falcon": FalconConfig(**SIZES, multi_query=True),
    "wider llama": LlamaConfig(**SIZES | WIDER, intermediate_size=1000, num_key_value_heads=4),
}


@cache
def loaded(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype).eval()


def request(seed: int, hidden: int, dtype: torch.dtype = torch.float32, **changes: Any) -> GenerateRequest:
    rng = random.Random(seed)  # noqa: S311 -- no secret
    generator = torch.Generator().manual_seed(seed)
    length = rng.choice((3, 17, 40, 140, 270))
    return GenerateRequest(
        embeddings=torch.randn(length, hidden, generator=generator).to(dtype),
        text_ids=(),
        stop_token_ids=frozenset(),
        **({"sampling": Sampling(), "max_new_tokens": NEW} | changes),
    )


def answers(model: Any, waiting: dict[int, GenerateRequest], *, rows: int, at_once: int) -> dict[int, list[Any]]:
    """Run requests, at most so many at once; each begins when another ends."""
    llm = LanguageModel(model)
    batch = Batch(llm, llm.new_pool(at_once * 400), model.config.vocab_size, rows)
    left = dict(waiting)
    given: dict[Sequence, tuple[int, list[Any]]] = {}
    while left or batch:
        while left and len(batch) < at_once:
            number, asked = next(iter(left.items()))
            sequence = batch.join(asked)
            assert sequence is not None
            given[sequence] = number, []
            del left[number]
        for sequence, outcome in batch.step():
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, Token):
                given[sequence][1].append((outcome.id, outcome.score))
    assert batch.pool.used == 0
    return dict(given.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_transformers(name: str) -> None:
    model = loaded(name, torch.float32)
    asked = {seed: request(seed, model.config.hidden_size) for seed in range(8)}
    model.set_attn_implementation("eager")
    wanted = {
        seed: model.generate(inputs_embeds=one.embeddings[None], max_new_tokens=NEW, do_sample=False)[0].tolist()
        for seed, one in asked.items()
    }
    found = answers(model, asked, rows=5, at_once=7)
    assert {seed: [token for token, _ in answer] for seed, answer in found.items()} == wanted
    assert len({tuple(answer) for answer in wanted.values()}) > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_do_not_depend_on_the_company(name: str, dtype: torch.dtype) -> None:
    """To the last bit, and so every choice made from them."""
    model = loaded(name, dtype)
    asked = {
        seed: request(
            seed,
            model.config.hidden_size,
            dtype,
            top_logprobs=5,
            max_new_tokens=4 + seed % 12,
            sampling=Sampling(top_k=seed % 2, seed=seed),
        )
        for seed in range(16)
    }
    alone = {seed: answers(model, {seed: one}, rows=8, at_once=1)[seed] for seed, one in asked.items()}
    among = answers(model, dict(reversed(asked.items())), rows=8, at_once=11)
    assert among == alone
