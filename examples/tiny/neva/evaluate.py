"""Asks a saved tiny NeVA questions, with nothing but transformers and SentencePiece.

python examples/tiny/neva/evaluate.py --model OUT/hf --questions 200
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tiny.neva.model import Prompter
from tiny.pictures import Question, paint, questions, scenes

LONGEST_ANSWER = 24  # tokens; `three purple triangles and three yellow squares` and its end need fewer
BATCH = 50


@dataclass(frozen=True, slots=True)
class Case:
    """One question about one picture."""

    picture: Image.Image
    question: Question
    kind: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model with what it needs to see and to read."""

    llava: LlavaForConditionalGeneration
    processor: CLIPImageProcessorPil
    prompter: Prompter

    @classmethod
    def from_folder(cls, folder: Path) -> "Model":
        """Read what the training script left in `hf/`."""
        return cls(
            LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32),
            CLIPImageProcessorPil.from_pretrained(folder),
            Prompter.from_bytes((folder / "tokenizer.model").read_bytes()),
        )

    @torch.no_grad()
    def answer(self, asked: Sequence[Case]) -> list[str]:
        """Greedy answers, in order."""
        prompts = [self.prompter.prompt(case.question.text) for case in asked]
        longest = max(map(len, prompts))
        pad = self.prompter.tokenizer.eos_id()
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        pixels = self.processor([case.picture for case in asked], return_tensors="pt")["pixel_values"]
        written = self.llava.generate(  # type: ignore[misc] # the mixin hints its self as a protocol LLaVA meets
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels,
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            eos_token_id=self.prompter.stop_ids,
            pad_token_id=pad,
        )
        return [self.prompter.read(row) for row in written[:, longest:].tolist()]


def cases(seed: int, *, held_out: bool) -> Iterator[Case]:
    """Yield questions without end, each about another picture, all kinds equally often as far as scenes allow.

    Args:
        seed: Draws scenes, pictures and questions.
        held_out: About compositions that training never shows, else only about others.
    """
    rng = random.Random(seed)
    asked: dict[str, int] = {}
    for scene in scenes(seed, held_out=held_out):
        possible = questions(scene, rng)
        kind = min(possible, key=lambda name: asked.get(name, 0))
        asked[kind] = asked.get(kind, 0) + 1
        yield Case(paint(scene, rng), possible[kind], kind)


def take(source: Iterator[Case], amount: int) -> list[Case]:
    """The next `amount` questions."""
    return [next(source) for _ in range(amount)]


def wrong_answers(model: Model, asked: Sequence[Case]) -> list[tuple[Case, str]]:
    """The cases answered wrong, with what the model said."""
    said = [answer for start in range(0, len(asked), BATCH) for answer in model.answer(asked[start : start + BATCH])]
    return [(case, answer) for case, answer in zip(asked, said, strict=True) if answer != case.question.answer]


def main() -> None:
    """Print every wrong answer and the share of right ones."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", type=Path, required=True, help="the hf folder that train.py wrote")
    arguments.add_argument("--questions", type=int, default=200)
    arguments.add_argument(
        "--seed", type=int, default=2, help="draws the questions; the training never sees any of them"
    )
    wanted = arguments.parse_args()
    asked = take(cases(wanted.seed, held_out=True), wanted.questions)
    wrong = wrong_answers(Model.from_folder(wanted.model), asked)
    for case, answer in wrong:
        print(f"{case.kind}: {case.question.text} -> {answer!r}, expected {case.question.answer!r}")
    print(f"{len(asked) - len(wrong)} of {len(asked)} held-out questions right")


if __name__ == "__main__":
    main()
