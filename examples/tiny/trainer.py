"""Trains one family's tiny model on synthetic media, writes it in its NeMo form, and asks it held-out questions.

Training is counted in steps, not minutes, so that a busy machine gives the same model, later. A round of answering that
ends below the mark on fresh media is followed by another: some seeds need it. In the end all weights are rounded to
what bfloat16 can hold, and stored so.
"""

import argparse
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tiny import heldout, learning
from tiny.answering import Case, Subject, World, wrong_answers
from tiny.languages import trainable
from tiny.learning import Progress
from tiny.pictures import Question
from torch import Tensor, nn
from torch.nn import functional

THREADS: Final = 2
CHUNK: Final = 100  # media rendered at a time
ROUNDS: Final = 3  # at most
MARK: Final = 0.965  # share of questions about fresh media (not of the held-out kind) that ends the rounds
HELP: Final = 0.3  # weight of what rows and the language model should tell, beside the answers
MEDIA_RATE: Final = 3e-3
ENOUGH: Final = 0.95  # share of held-out questions that must be answered right
QUESTIONS: Final = 300  # per examination


@dataclass(frozen=True)
class Family:
    """What the trainer needs to know of one family."""

    world: World[Any]
    subject: Subject
    save: Callable[[Path], None]
    """Writes archive and what belongs beside it into a folder."""
    amount: int = 4000
    """Media to train on."""
    batch: int = 24
    media_steps: int = 600
    steps: int = 2000
    rate: float = 3e-3
    listed: int = 8
    """Media in `heldout/`."""


def cases(world: World[Any], seed: int, *, held_out: bool) -> Iterator[Case]:
    """Yield questions without end, each about another medium, all kinds equally often as far as contents allow."""
    rng = random.Random(seed)
    counts: dict[str, int] = {}
    for content in world.contents(seed, held_out):
        possible = world.questions(content, rng)
        kind = learning.take_turns(possible, counts, rng)
        yield Case(world.render(content, rng), possible[kind], kind)


def ask_about(family: Family, seed: int) -> list[list[Case]]:
    """Held-out media for demonstrations and tests, each with all its questions, all of which the model answers right.

    Media about which it errs are passed over; how often that is, the share of right answers says.
    """
    rng = random.Random(seed)
    listed: list[list[Case]] = []
    for content in itertools.islice(family.world.contents(seed, True), 4 * family.listed):  # noqa: FBT003
        medium = family.world.render(content, rng)
        asked = [Case(medium, question, kind) for kind, question in family.world.questions(content, rng).items()]
        if len(listed) < family.listed and not wrong_answers(family.subject, asked):
            listed.append(asked)
    return listed


def share_right(family: Family, seed: int, *, held_out: bool, progress: Progress | None = None) -> float:
    """The share of QUESTIONS questions that the model answers right, written out greedily."""
    asked = list(itertools.islice(cases(family.world, seed, held_out=held_out), QUESTIONS))
    wrong = wrong_answers(family.subject, asked)
    if progress and wrong:
        kinds = sorted({case.kind for case, _ in wrong})
        progress.say("wrong: " + ", ".join(f"{kind} {sum(case.kind == kind for case, _ in wrong)}" for kind in kinds))
        case, said = wrong[0]
        progress.say(f"such as {case.question.text} -> {said!r}, expected {case.question.answer!r}")
    return 1 - len(wrong) / len(asked)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Contents to train on, none of them of the held-out kind, what the model gets to see of each, and its rows."""

    contents: list[Any]
    seen: list[Tensor]
    rows: list[int]


def draw(family: Family, seed: int, amount: int, device: torch.device) -> Drawn:
    """Make media for training."""
    rng = random.Random(seed)
    contents = list(itertools.islice(family.world.contents(seed, False), amount))  # noqa: FBT003
    seen: list[Tensor] = []
    for start in range(0, len(contents), CHUNK):
        media = [family.world.render(content, rng) for content in contents[start : start + CHUNK]]
        seen += [each.to(device) for each in family.subject.see(media)]
    layouts = [family.subject.layout(each) for each in seen]
    return Drawn(contents, seen, [sum(part for part in parts if isinstance(part, int)) for parts in layouts])


def pack(subject: Subject, seen: Sequence[Tensor], asked: Sequence[Sequence[Question]]) -> learning.Packed:
    """Pack the questions of each medium behind the prompt's common beginning."""
    prompter = subject.prompter
    return learning.pack(
        [prompter.beginning(subject.layout(each)) for each in seen],
        [
            [(prompter.question_ids(each.text), prompter.answer_ids(each.text, each.answer)) for each in questions]
            for questions in asked
        ],
        prompter.eos,
    )


def corpus(world: World[Any], seed: int, amount: int = 600) -> list[str]:
    """Questions and answers for a tokenizer to be trained on."""
    rng = random.Random(seed)
    contents = itertools.islice(world.contents(seed, False), amount)  # noqa: FBT003 - a World's signature
    asked = [question for content in contents for question in world.questions(content, rng).values()]
    return [text for question in asked for text in (question.text, question.answer)]


@dataclass(frozen=True, slots=True)
class Listener:
    """A head that helps the training and is thrown away: it must tell from states what labels say."""

    head: nn.Module
    labels: list[Tensor]
    """Per medium [rows, labels]; not a number where nothing is asked."""

    @classmethod
    def to(cls, say: Callable[[Any, int], Tensor], family: Family, data: Drawn) -> "Listener":
        """A fresh head that listens to the labels that `say` gives."""
        labels = [say(content, rows) for content, rows in zip(data.contents, data.rows, strict=True)]
        head = nn.Linear(family.subject.model.llm.config.hidden_size, labels[0].shape[1])
        return cls(head.to(data.seen[0].device), labels)

    def loss(self, states: Tensor, chosen: Sequence[int]) -> Tensor:
        """How badly the head tells: cross entropies, summed up per row; `states` are [rows of all chosen, hidden]."""
        wanted = torch.cat([self.labels[index] for index in chosen]).to(states.device)
        asked = ~wanted.isnan()
        losses = functional.binary_cross_entropy_with_logits(self.head(states), wanted.nan_to_num(), reduction="none")
        return (losses * asked).sum() / asked.any(dim=1).sum()


def train_media(family: Family, data: Drawn, rows: Listener, steps: int, progress: Progress) -> None:
    """First the media's rows learn to tell what is to be seen or heard."""
    media = family.subject.model.media.train()
    for step in learning.optimise([*media.parameters(), *rows.head.parameters()], MEDIA_RATE, steps):
        chosen = torch.randint(len(data.seen), (family.batch,)).tolist()
        loss = rows.loss(media([data.seen[index] for index in chosen]), chosen)
        loss.backward()
        progress.step("media", step, steps, loss)


def train(family: Family, seed: int, effort: float, device: torch.device, progress: Progress) -> None:
    """Teach the model to answer, then round it."""
    rng = random.Random(seed)
    subject, world = family.subject, family.world
    data = draw(family, seed, max(family.batch, round(min(1.0, effort) * family.amount)), device)
    progress.say(f"made {len(data.seen)} media")
    shallow = Listener.to(world.row_labels, family, data)
    train_media(family, data, shallow, round(effort * family.media_steps), progress)
    deep = Listener.to(world.deep_labels, family, data) if world.deep_labels else None
    steps = round(effort * family.steps)
    parameters = trainable([subject.model, shallow.head, *([deep.head] if deep else [])])
    for number in range(1, ROUNDS + 1):
        subject.model.train()
        for step in learning.optimise(parameters, family.rate / number, steps):
            chosen = rng.sample(range(len(data.seen)), family.batch)
            features = [data.seen[index] for index in chosen]
            asked = [list(world.questions(data.contents[index], rng).values()) for index in chosen]
            rows = subject.model.media(features)
            loss, states = subject.model.loss(pack(subject, features, asked), rows)
            # Where the language model is helped, rows go on telling what they have learned to.
            helping = shallow.loss(rows, chosen) + deep.loss(states, chosen) if deep else 0.0
            (loss + HELP * helping).backward()
            progress.step(f"answers, round {number}", step, steps, loss)
        share = share_right(family, seed + number, held_out=False, progress=progress)
        progress.say(f"answers, round {number}: {share:.1%} right about fresh media")
        if share >= MARK:
            break
    learning.round_to_bfloat16(subject.model)


def main(about: str | None, make: Callable[[int, torch.device, Progress], Family]) -> int:
    """Train, write, and ask; the exit code says whether enough held-out answers are right.

    Args:
        about: The script's docstring.
        make: Makes the family, untrained, from a seed.
    """
    arguments = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="folder to write to; made if absent")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument(
        "--effort", type=float, default=1.0, help="scales the training: steps, and below 1 also media"
    )
    arguments.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    wanted = arguments.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(wanted.seed)
    progress = Progress()
    family = make(wanted.seed, wanted.device, progress)
    family.subject.model.to(wanted.device)
    train(family, wanted.seed, wanted.effort, wanted.device, progress)
    wanted.out.mkdir(parents=True, exist_ok=True)
    family.save(wanted.out)
    heldout.save(wanted.out / "heldout", ask_about(family, seed=1))
    share = share_right(family, 2, held_out=True, progress=progress)
    progress.say(f"{share:.1%} of held-out questions right; written to {wanted.out}")
    return 0 if share >= ENOUGH else 1
