"""Synthetic videos with questions and answers: what moves and where to, what appears when.

A video shows two shapes of different form and colour on the grid of cells that the pictures have. As with pictures,
which videos are held out is a property of their content alone.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw
from tiny.pictures import COLOURS, EVEN, GRID, HELD_OUT_SHARE, PLACES, SHAPES, Question, stamp

LAST_TIME: Final = 99
"""Of the time tokens <t0> to <t99>."""

Place = tuple[float, float]
"""(row, column) in cells; between two cells while a shape moves."""

DIRECTIONS: Final[dict[str, tuple[Place, Place]]] = {
    # From where to where, in the lane that is added across: row for right and left, column for up and down.
    "to the right": ((0, 0), (0, GRID - 1)),
    "to the left": ((0, GRID - 1), (0, 0)),
    "down": ((0, 0), (GRID - 1, 0)),
    "up": ((GRID - 1, 0), (0, 0)),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape in a video: its place in each frame, None where it is not visible."""

    shape: str
    colour: str
    places: tuple[Place | None, ...]
    doing: str
    """What it does, for the composition: a direction, `still`, or when it comes and goes."""

    @property
    def words(self) -> str:
        """The thing as English."""
        return f"{self.colour} {self.shape}"

    @property
    def first(self) -> int:
        """The first frame that shows it."""
        return next(index for index, place in enumerate(self.places) if place)

    @property
    def last(self) -> int:
        """The last frame that shows it."""
        return max(index for index, place in enumerate(self.places) if place)


@dataclass(frozen=True, slots=True)
class Clip:
    """What a video shows."""

    kind: str
    things: tuple[Thing, ...]

    @property
    def held_out(self) -> bool:
        """Whether the video belongs to the test set."""
        composition = " ".join([self.kind, *(f"{thing.words} {thing.doing}" for thing in self.things)])
        return zlib.crc32(composition.encode()) % HELD_OUT_SHARE == 0


def moving(rng: random.Random, frames: int) -> Clip:
    """One shape crosses the picture, the other stands still in another lane."""
    direction = rng.choice(sorted(DIRECTIONS))
    across = DIRECTIONS[direction][0][0] == DIRECTIONS[direction][1][0]  # it moves along a row
    lane, other = rng.sample(range(GRID), 2)
    start, stop = ((row + lane, column) if across else (row, column + lane) for row, column in DIRECTIONS[direction])
    begin, end = rng.randint(0, frames // 4), frames - 1 - rng.randint(0, frames // 4)
    shares = [min(1.0, max(0.0, (frame - begin) / (end - begin))) for frame in range(frames)]
    path = tuple((start[0] + share * (stop[0] - start[0]), start[1] + share * (stop[1] - start[1])) for share in shares)
    along = rng.randrange(GRID)
    stands = (other, along) if across else (along, other)
    (shape, colour), (still_shape, still_colour) = _looks(rng)
    return Clip(
        "moving",
        (Thing(shape, colour, path, direction), Thing(still_shape, still_colour, (stands,) * frames, "still")),
    )


def appearing(rng: random.Random, frames: int) -> Clip:
    """Two shapes that stand still come one after the other, and stay."""
    early = rng.randint(0, frames // 2 - 1)
    late = rng.randint(early + 2, frames - 2)
    cells = rng.sample(sorted(PLACES), 2)
    return Clip(
        "appearing",
        tuple(
            Thing(shape, colour, tuple(cell if frame >= since else None for frame in range(frames)), name)
            for (shape, colour), cell, since, name in zip(
                _looks(rng), cells, (early, late), ("first", "last"), strict=True
            )
        ),
    )


def passing(rng: random.Random, frames: int) -> Clip:
    """Two shapes that stand still come and go, each for a quarter of the time or more."""
    shortest = frames // 4
    things = []
    for (shape, colour), cell in zip(_looks(rng), rng.sample(sorted(PLACES), 2), strict=True):
        length = rng.randint(shortest, frames - 2)
        start = rng.randint(0, frames - length)
        places = tuple(cell if start <= frame < start + length else None for frame in range(frames))
        things.append(Thing(shape, colour, places, f"{start}-{start + length}"))
    return Clip("passing", tuple(things))


def _looks(rng: random.Random) -> list[tuple[str, str]]:
    """Two shapes with colours, different in both."""
    return list(zip(rng.sample(SHAPES, 2), rng.sample(sorted(COLOURS), 2), strict=True))


def movements(seed: int, held_out: bool, frames: int) -> Iterator[Clip]:  # noqa: FBT001 - a World's signature
    """Yield videos of shapes that move or appear, without end."""
    rng = random.Random(f"{seed} {held_out} movements")
    while True:
        clip = moving(rng, frames) if rng.random() < EVEN else appearing(rng, frames)
        if clip.held_out == held_out:
            yield clip


def events(seed: int, held_out: bool, frames: int) -> Iterator[Clip]:  # noqa: FBT001 - a World's signature
    """Yield videos of shapes that come and go, without end."""
    rng = random.Random(f"{seed} {held_out} events")
    while True:
        clip = passing(rng, frames)
        if clip.held_out == held_out:
            yield clip


def ask_movement(clip: Clip, _: random.Random) -> dict[str, Question]:
    """Every kind of question about a video of `movements`, by kind."""
    first, second = clip.things
    if clip.kind == "appearing":
        return {
            "appears first": Question("What appears first?", f"the {first.words}"),
            "appears last": Question("What appears last?", f"the {second.words}"),
            "shape first": Question("Which shape appears first?", first.shape),
        }
    return {
        "moves": Question("What moves?", f"the {first.words}"),
        "stands": Question("What stands still?", f"the {second.words}"),
        "direction": Question(f"Which way does the {first.shape} move?", first.doing),
        "happens": Question("What happens in the video?", f"a {first.words} moves {first.doing}"),
    }


def ask_event(clip: Clip, rng: random.Random) -> dict[str, Question]:
    """Every kind of question about a video of `events`, by kind; times are written as time tokens."""
    thing = rng.choice(clip.things)
    frames = len(thing.places)
    asked = {
        "when": Question(f"When is the {thing.words} visible?", f"{_time(thing.first, frames)} {_end(thing)}"),
        "appears": Question(f"When does the {thing.words} appear?", _time(thing.first, frames)),
        "vanishes": Question(f"When does the {thing.words} vanish?", _end(thing)),
        "colour": Question(f"What colour is the {thing.shape}?", thing.colour),
    }
    firsts = {each.first: each for each in clip.things}
    if max(firsts) - min(firsts) > 1:
        asked["appears first"] = Question("What appears first?", f"the {firsts[min(firsts)].words}")
    return asked


def ask_colour_event(clip: Clip, rng: random.Random) -> dict[str, Question]:
    """Questions about a video of `events` that name colours alone: all that a single patch of a frame tells."""
    thing = rng.choice(clip.things)
    first, last = _time(thing.first, len(thing.places)), _end(thing)
    asked = {
        "when": Question(f"When is the {thing.colour} shape visible?", f"{first} {last}"),
        "appears": Question(f"When does the {thing.colour} shape appear?", first),
        "vanishes": Question(f"When does the {thing.colour} shape vanish?", last),
    }
    firsts = {each.first: each for each in clip.things}
    if max(firsts) - min(firsts) > 1:
        asked["first"] = Question("Which colour appears first?", firsts[min(firsts)].colour)
        asked["second"] = Question("Which colour appears last?", firsts[max(firsts)].colour)
    return asked


def _time(frame: int, frames: int) -> str:
    """The time token of the moment at which a frame begins."""
    return f"<t{round(LAST_TIME * frame / frames)}>"


def _end(thing: Thing) -> str:
    return _time(thing.last + 1, len(thing.places))


def film(clip: Clip, rng: random.Random) -> list[Image.Image]:
    """Paint the frames, RGB, 96 to 112 x 96 pixels; `rng` sets size, shades and small shifts, the same in all."""
    width, height = rng.randint(96, 112), 96
    shade = rng.randint(205, 250)
    background = tuple(shade + rng.randint(-5, 5) for _ in range(3))
    cell = height / GRID
    left = (width - height) / 2
    looks = []
    for thing in clip.things:
        radius = cell * rng.uniform(0.32, 0.42)
        slack = cell / 2 - radius
        red, green, blue = (min(255, max(0, value + rng.randint(-15, 15))) for value in COLOURS[thing.colour])
        looks.append((radius, rng.uniform(-slack, slack), rng.uniform(-slack, slack), (red, green, blue)))
    frames = []
    for index in range(len(clip.things[0].places)):
        frame = Image.new("RGB", (width, height), background)
        pen = ImageDraw.Draw(frame)
        for thing, (radius, right, down, colour) in zip(clip.things, looks, strict=True):
            place = thing.places[index]
            if place:
                x, y = left + (place[1] + 0.5) * cell + right, (place[0] + 0.5) * cell + down
                stamp(pen, thing.shape, (x, y), radius, colour)
        # No frame is quite like the one before it: image files would join the two.
        frame.putpixel((0, 0), (shade, shade, shade - index % 2))
        frames.append(frame)
    return frames
