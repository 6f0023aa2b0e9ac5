"""Trains the tiny NeVA on synthetic pictures and writes it as two NeMo archives.

    python examples/tiny/neva/train.py --out OUT [--seed N] [--minutes M]

OUT then holds `neva.nemo` (distributed weights, tower inside), `neva_ckpt.nemo` (classic weights, tower in `clip/`),
`clip/`, `heldout/` (pictures, questions and answers never trained on) and `hf/` (the same model for transformers).

Two steps, as NeVA is made: first the tower learns to see (here: what stands in each cell of the grid), is rounded to
bfloat16 and frozen; then projector and language model learn to answer about its features, which are computed once.
Training is counted in steps, not minutes, so that a busy machine gives the same model, later. A round of answering that
ends below the mark on fresh pictures is followed by another: some seeds need it.
"""

import argparse
import itertools
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Read when torch is loaded: threads that wait for one another sleep. Spinning is slow on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tiny import nemo_writer, pictures
from tiny.neva import evaluate
from tiny.neva import model as tiny
from tiny.neva.config import model_config

THREADS: Final = 2
PICTURES: Final = 12_000
CHUNK: Final = 500  # pictures prepared at a time
TOWER_BATCH: Final = 64
TOWER_STEPS: Final = 800
TOWER_RATE: Final = 2e-3
ANSWER_BATCH: Final = 24
ANSWER_STEPS: Final = 1800
ANSWER_RATE: Final = 3e-3
ROUNDS: Final = 3  # at most
MARK: Final = 0.98  # share of questions about fresh pictures (not of the held-out kind) that ends the rounds
ENOUGH: Final = 0.95  # share of held-out questions that must be answered right
QUIET: Final = 10.0  # seconds between two lines of progress
UNLEARNED: Final = -100  # cross_entropy's mark for positions without a target

CELLS: Final = pictures.GRID**2
CELL_LABELS: Final = (1 + len(pictures.SHAPES), 1 + len(pictures.COLOURS), 1 + pictures.MAX_COUNT, CELLS)
"""What the tower must tell of a cell: its shape and colour, how many of them the picture shows, which cell it is."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Painted scenes: pixels [pictures, 3, CROP, CROP] and cell labels [pictures, cells, labels]."""

    scenes: list[pictures.Scene]
    pixels: Tensor
    cells: Tensor


class Progress:
    """Prints what happens with the time since the start, at most one line in ten seconds unless it matters."""

    def __init__(self) -> None:
        self._start = self._printed = time.monotonic()

    def say(self, text: str) -> None:
        """Print `text`."""
        self._printed = time.monotonic()
        print(f"{self._printed - self._start:6.0f} s  {text}", flush=True)

    def step(self, name: str, step: int, steps: int, loss: Tensor) -> None:
        """Print how far a training step is, if the last line is old enough or it is the last step."""
        if step + 1 == steps or time.monotonic() - self._printed > QUIET:
            self.say(f"{name}: step {step + 1} of {steps}, loss {loss.item():.4f}")


def draw(amount: int, seed: int) -> Drawn:
    """Paint pictures for training, none of them of a held-out composition."""
    rng = random.Random(seed)
    drawn = list(itertools.islice(pictures.scenes(seed, held_out=False), amount))
    processor = tiny.make_processor()
    pixels = [
        processor([pictures.paint(scene, rng) for scene in drawn[start : start + CHUNK]], return_tensors="pt")[
            "pixel_values"
        ]
        for start in range(0, amount, CHUNK)
    ]
    cells = torch.zeros(amount, CELLS, len(CELL_LABELS), dtype=torch.long)
    cells[..., 3] = torch.arange(CELLS)
    for index, scene in enumerate(drawn):
        for group in scene.groups:
            shape, colour = pictures.SHAPES.index(group.shape), list(pictures.COLOURS).index(group.colour)
            places = [row * pictures.GRID + column for row, column in group.cells]
            cells[index, places, :3] = torch.tensor([1 + shape, 1 + colour, group.count])
    return Drawn(drawn, torch.cat(pixels), cells)


def see(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """The features NeVA takes: hidden state -2 without the class token, [pictures, patches, width]."""
    states: tuple[Tensor, ...] = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    return states[-2][:, 1:]


def by_cell(features: Tensor) -> Tensor:
    """Join the 2 x 2 patches of each cell: [pictures, patches, width] to [pictures, cells, 4 * width]."""
    grid, inside = pictures.GRID, tiny.CROP // tiny.PATCH // pictures.GRID
    split: Tensor = features.unflatten(1, (grid, inside, grid, inside))
    return split.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def optimise(parameters: Sequence[nn.Parameter], rate: float, steps: int) -> Iterator[int]:
    """Yield each step's number with gradients cleared, then apply them; the rate warms up and falls to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        scale = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        optimizer.zero_grad(set_to_none=True)
        yield step
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def train_tower(tower: CLIPVisionModel, data: Drawn, steps: int, progress: Progress) -> None:
    """Teach the tower what stands in each cell, then round it to what bfloat16 can hold and freeze it."""
    head = nn.Linear(4 * tiny.TOWER_WIDTH, sum(CELL_LABELS))
    for step in optimise([*tower.parameters(), *head.parameters()], TOWER_RATE, steps):
        chosen = torch.randint(len(data.scenes), (TOWER_BATCH,))
        guess = head(by_cell(see(tower, data.pixels[chosen]))).split(CELL_LABELS, dim=-1)
        losses = [
            functional.cross_entropy(part.flatten(0, 1), data.cells[chosen, :, i].flatten())
            for i, part in enumerate(guess)
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        progress.step("tower", step, steps, loss)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    tower.requires_grad_(requires_grad=False).eval()


@dataclass(frozen=True, slots=True)
class Packed:
    """Pictures, each followed by several questions with answers that do not see one another.

    So a picture is read once for all its questions, and every question is still seen exactly as it will be asked: at
    its own positions, after the picture alone. Shapes: `sees` [pictures, 1, tokens, tokens], the others
    [pictures, tokens]; `targets` are UNLEARNED where nothing is learned.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    sees: Tensor


def pack(prompter: tiny.Prompter, asked: Sequence[Sequence[pictures.Question]]) -> Packed:
    """Pack the questions of each picture behind the prompt's common beginning."""
    shared = prompter.media_start + tiny.PATCHES
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    targets: list[list[int]] = []
    turns: list[list[int]] = []
    for listed in asked:
        ids.append(prompter.prompt("")[:shared])
        positions.append(list(range(shared)))
        targets.append([UNLEARNED] * shared)
        turns.append([0] * shared)
        for turn, question in enumerate(listed, start=1):
            prompt, answer = prompter.prompt(question.text)[shared:], prompter.answer_ids(question.answer)
            length = len(prompt) + len(answer)
            ids[-1] += prompt + answer
            positions[-1] += range(shared, shared + length)
            # The token before an answer foretells the answer's first, and so on; its last token foretells nothing.
            targets[-1] += [UNLEARNED] * (len(prompt) - 1) + answer + [UNLEARNED]
            turns[-1] += [turn] * length
    of_turn = _rectangle(turns, -1)
    same = (of_turn[:, None, :] == of_turn[:, :, None]) | (of_turn == 0)[:, None, :]
    causal = torch.ones(of_turn.shape[1], of_turn.shape[1]).tril().bool()
    return Packed(
        ids=_rectangle(ids, prompter.tokenizer.eos_id()),
        positions=_rectangle(positions, 0),
        targets=_rectangle(targets, UNLEARNED),
        sees=(same & causal)[:, None],
    )


def _rectangle(rows: Sequence[list[int]], filler: int) -> Tensor:
    """Rows of unequal length as one tensor."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def train_answers(
    model: LlavaForConditionalGeneration,
    prompter: tiny.Prompter,
    data: Drawn,
    steps: int,
    seed: int,
    progress: Progress,
) -> None:
    """Teach projector and language model to answer; the tower stays as it is, so its features are computed once."""
    rng = random.Random(seed)
    with torch.no_grad():
        features = torch.cat([see(model.model.vision_tower, pixels) for pixels in data.pixels.split(CHUNK)])
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for number in range(1, ROUNDS + 1):
        for step in optimise(learning, ANSWER_RATE / number, steps):
            chosen = rng.sample(range(len(data.scenes)), ANSWER_BATCH)
            packed = pack(prompter, [list(pictures.questions(data.scenes[index], rng).values()) for index in chosen])
            loss = answer_loss(model, prompter, packed, features[chosen])
            loss.backward()
            progress.step(f"answers, round {number}", step, steps, loss)
        share = share_right(evaluate.Model(model, tiny.make_processor(), prompter), seed + number, held_out=False)
        progress.say(f"answers, round {number}: {share:.1%} right about fresh pictures")
        if share >= MARK:
            return


def answer_loss(model: LlavaForConditionalGeneration, prompter: tiny.Prompter, packed: Packed, seen: Tensor) -> Tensor:
    """The mean cross entropy of all answers' tokens; `seen` are the tower's features, [pictures, patches, width]."""
    start, end = prompter.media_start, prompter.media_start + tiny.PATCHES
    text = model.model.language_model.embed_tokens(packed.ids)
    media = model.model.multi_modal_projector(seen)
    states = model.model.language_model(
        inputs_embeds=torch.cat([text[:, :start], media, text[:, end:]], dim=1),
        attention_mask=packed.sees,
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state
    learned = packed.targets != UNLEARNED
    return functional.cross_entropy(model.lm_head(states[learned]), packed.targets[learned])


def share_right(model: evaluate.Model, seed: int, *, held_out: bool, amount: int = 500) -> float:
    """The share of `amount` questions that the model answers right, written out greedily."""
    asked = evaluate.take(evaluate.cases(seed, held_out=held_out), amount)
    return 1 - len(evaluate.wrong_answers(model, asked)) / amount


def corpus(seed: int) -> Iterator[str]:
    """Yield turns, questions and answers for the tokenizer, each on its own as it will be encoded."""
    rng = random.Random(seed)
    for scene in itertools.islice(pictures.scenes(seed, held_out=False), 500):
        for question in pictures.questions(scene, rng).values():
            yield from ("System", "User", "Assistant", question.text, question.answer)


def save(out: Path, model: LlavaForConditionalGeneration, tokenizer: bytes) -> None:
    """Write both archives, the tower's folder and the model for transformers."""
    shape = nemo_writer.LlamaShape(tiny.LAYERS, tiny.HEADS, tiny.GROUPS, tiny.PADDED_VOCAB)
    llama, projector = tiny.llama_state(model), tiny.part(model, "model.multi_modal_projector.")
    tiny.save_clip(out / "clip", model)
    tiny.save_hf(out / "hf", model, tokenizer)
    distributed = nemo_writer.distributed_state(llama, projector, tiny.tower_state(model), shape)
    classic = nemo_writer.classic_state(llama, projector, shape)
    for name, state, kind in (("neva.nemo", distributed, True), ("neva_ckpt.nemo", classic, False)):
        config = model_config(distributed=kind)
        nemo_writer.write_archive(out / name, config=config, tokenizer=tokenizer, state=state, distributed=kind)


def save_held_out(folder: Path, seed: int, amount: int = 18) -> None:
    """Write held-out pictures as PNG with questions and answers, two of each kind, for demonstrations and tests."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, case in enumerate(evaluate.take(evaluate.cases(seed, held_out=True), amount)):
        name = f"{number:02d}.png"
        case.picture.save(folder / name, optimize=True)
        listed.append({"picture": name, "question": case.question.text, "answer": case.question.answer})
    (folder / "heldout.json").write_text(json.dumps(listed, indent=2) + "\n")


def main() -> int:
    """Train, write, and ask; the exit code says whether enough held-out answers are right."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="folder to write to; made if absent")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--effort", type=float, default=1.0, help="scales the number of training steps")
    wanted = arguments.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(wanted.seed)
    progress = Progress()
    data = draw(PICTURES, wanted.seed)
    progress.say(f"painted {PICTURES} pictures")
    tokenizer = tiny.train_tokenizer(corpus(wanted.seed))
    prompter = tiny.Prompter.from_bytes(tokenizer)
    model = tiny.make_model(prompter)
    train_tower(model.model.vision_tower, data, round(wanted.effort * TOWER_STEPS), progress)
    train_answers(model, prompter, data, round(wanted.effort * ANSWER_STEPS), wanted.seed, progress)
    wanted.out.mkdir(parents=True, exist_ok=True)
    save(wanted.out, model, tokenizer)
    save_held_out(wanted.out / "heldout", seed=1)
    share = share_right(evaluate.Model.from_folder(wanted.out / "hf"), 2, held_out=True)
    progress.say(f"{share:.1%} of held-out questions right; written to {wanted.out}")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
