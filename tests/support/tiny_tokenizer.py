"""A tiny byte-level tokenizer, made with the `tokenizers` library alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB: Final = 320
SPECIALS: Final = ("<unk>", "<s>", "</s>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>")


def write_tokenizer(path: Path) -> None:
    """256 bytes, the special tokens, and merges up to VOCAB; two line breaks are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [
        "what is in this image? a red circle left of a blue square\n\n",
        "how many green stars are there? three\n\n",
    ]
    tokenizer.train_from_iterator(text * 20, trainer)
    assert tokenizer.get_vocab_size() <= VOCAB
    tokenizer.save(str(path))
