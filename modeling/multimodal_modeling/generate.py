"""One sequence by itself: prefill, then token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from multimodal_modeling.sampling import Chooser, scores_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import Tensor

    from multimodal_api.worker_protocol import Sampling
    from multimodal_modeling.llm import LanguageModel


def generate(
    llm: LanguageModel,
    embeddings: Tensor,
    sampling: Sampling,
    *,
    prompt_ids: Sequence[int],
    vocab_size: int,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
) -> Iterator[int]:
    """Answer one prompt; each step runs when the next token is asked for.

    Args:
        llm: The decoder.
        embeddings: [tokens, hidden], media spliced in.
        sampling: How tokens are chosen.
        prompt_ids: The prompt's text, for the repetition penalty; media positions are left out.
        vocab_size: Size of the tokenizer.
        eos_token_ids: Any of these ends the answer and is not given.
        max_new_tokens: Most tokens given.

    Raises:
        NotFiniteError: the model gives scores that are no numbers.
    """
    chooser = Chooser(sampling, prompt_ids=prompt_ids)
    cache = llm.new_cache()
    step = embeddings
    for _ in range(max_new_tokens):
        with torch.inference_mode():  # not around the loop: between steps the caller's own mode holds
            logits = llm.logits(step[None], cache, last=1)[0, -1]
            token = chooser.choose(scores_of(logits, vocab_size).cpu())
            if token in eos_token_ids:
                return
            step = llm.embed(torch.tensor([token]))
        chooser.take(token)
        yield token
