"""One sequence at a time: prefill, then token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_modeling.sampling import SamplingParameters, make_generator, sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import Tensor

    from multimodal_modeling.llm import LanguageModel


def generate(
    llm: LanguageModel,
    embeddings: Tensor,
    parameters: SamplingParameters,
    *,
    prompt_ids: Sequence[int],
    vocab_size: int,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
) -> Iterator[int]:
    """Answer one prompt; each step runs when the next token is asked for, so that sequences can be interleaved.

    Args:
        llm: The decoder.
        embeddings: [tokens, hidden], media spliced in.
        parameters: How tokens are chosen.
        prompt_ids: The prompt's text, for the repetition penalty; media positions are left out.
        vocab_size: Size of the tokenizer.
        eos_token_ids: Any of these ends the answer and is not given.
        max_new_tokens: Most tokens given.

    Raises:
        ProductError: the model gives scores that are no numbers.
    """
    generator = make_generator(parameters)
    history = list(prompt_ids)
    cache = llm.new_cache()
    step = embeddings
    for _ in range(max_new_tokens):
        with torch.inference_mode():  # not around the loop: between steps the caller's own mode holds
            logits = llm.logits(step[None], cache, last=1)[0, -1]
            token = _choose(logits, parameters, vocab_size=vocab_size, history=history, generator=generator)
            if token in eos_token_ids:
                return
            step = llm.embed(torch.tensor([token]))
        history.append(token)
        yield token


def _choose(
    logits: Tensor,
    parameters: SamplingParameters,
    *,
    vocab_size: int,
    history: Sequence[int],
    generator: torch.Generator,
) -> int:
    if not torch.isfinite(logits[:vocab_size]).all():
        raise ProductError(
            Reason.INTERNAL,
            at="language model",
            problem="its scores are not finite numbers",
            remedy="try dtype bfloat16 or float32: float16 overflows with models that were trained in bfloat16",
        )
    return sample(logits, parameters, vocab_size=vocab_size, history=history, generator=generator)
