"""Synthetic pictures with questions and answers: shapes, colours, counts and positions.

A scene is one or two groups of equal shapes on a 3 x 3 grid of cells. The grid lies in the central square of the
picture, so CLIP's centre crop never cuts a shape off, while a picture cropped elsewhere loses some.

Which scenes are held out is a property of the scene's content alone (`Scene.held_out`), so training and testing agree
on it without a list: one composition in ten is never drawn for training, in any place, size or shade.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

SHAPES: Final = ("circle", "square", "triangle", "cross")
COLOURS: Final = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 200, 30),
    "purple": (140, 50, 160),
    "black": (25, 25, 25),
}
NUMBERS: Final = ("none", "one", "two", "three", "four", "five", "six")
GRID: Final = 3
MAX_COUNT: Final = 4
MAX_TOTAL: Final = 6
HELD_OUT_SHARE: Final = 10  # one composition in this many
EVEN: Final = 0.5
ABSENT: Final = 0.3  # of the counting questions: these may ask for a shape that is not there

Cell = tuple[int, int]  # (row, column), both 0..GRID-1

PLACES: Final[dict[Cell, str]] = {
    (0, 0): "at the top left",
    (0, 1): "at the top",
    (0, 2): "at the top right",
    (1, 0): "on the left",
    (1, 1): "in the middle",
    (1, 2): "on the right",
    (2, 0): "at the bottom left",
    (2, 1): "at the bottom",
    (2, 2): "at the bottom right",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Shapes of one kind and colour, each in its own cell."""

    shape: str
    colour: str
    cells: tuple[Cell, ...]

    @property
    def count(self) -> int:
        """How many shapes the group has."""
        return len(self.cells)

    def words(self) -> str:
        """The group as English, for example `a red circle` or `two blue squares`."""
        if self.count == 1:
            return f"a {self.colour} {self.shape}"
        return f"{NUMBERS[self.count]} {self.colour} {plural(self.shape)}"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture and the one right answer."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: groups that differ in shape and in colour, in the order of SHAPES."""

    groups: tuple[Group, ...]

    @property
    def composition(self) -> str:
        """The content by which scenes are held out: shapes, colours, counts, and the place of each lone shape."""
        return " ".join(
            f"{group.shape}/{group.colour}/{group.count}" + (f"@{group.cells[0]}" if group.count == 1 else "")
            for group in self.groups
        )

    @property
    def held_out(self) -> bool:
        """Whether the scene belongs to the test set."""
        return zlib.crc32(self.composition.encode()) % HELD_OUT_SHARE == 0


def plural(shape: str) -> str:
    """The English plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def draw_scene(rng: random.Random) -> Scene:
    """Draw a random scene; half of them are shapes that stand alone, for the questions about places."""
    amount = rng.choice((1, 2, 2))
    shapes = sorted(rng.sample(SHAPES, amount), key=SHAPES.index)
    colours = rng.sample(sorted(COLOURS), amount)
    if rng.random() < EVEN:
        return Scene(tuple(Group(s, c, (p,)) for s, c, p in zip(shapes, colours, _opposite(rng, amount), strict=True)))
    counts = [rng.randint(1, MAX_COUNT) for _ in shapes]
    if sum(counts) > MAX_TOTAL:
        counts = [MAX_TOTAL // 2] * amount
    cells = rng.sample(sorted(PLACES), sum(counts))
    groups = []
    for shape, colour, count in zip(shapes, colours, counts, strict=True):
        groups.append(Group(shape, colour, tuple(sorted(cells[:count]))))
        cells = cells[count:]
    return Scene(tuple(groups))


def scenes(seed: int, *, held_out: bool) -> Iterator[Scene]:
    """Yield scenes without end: of the test set when `held_out`, else only scenes the test set can never show."""
    rng = random.Random(f"{seed} {held_out}")
    while True:
        scene = draw_scene(rng)
        if scene.held_out == held_out:
            yield scene


def questions(scene: Scene, rng: random.Random) -> dict[str, Question]:
    """Every kind of question that has one clear answer for the scene, by kind; `rng` picks wording and subject."""
    group = rng.choice(scene.groups)
    many = group.count > 1
    asked = {
        "describe": Question(
            rng.choice(("What is in the picture?", "Hi! What is in this image?", "Describe the picture.")),
            " and ".join(each.words() for each in scene.groups),
        ),
        "colour": Question(
            f"What colour are the {plural(group.shape)}?" if many else f"What colour is the {group.shape}?",
            group.colour,
        ),
        "shape": Question(f"Which shape is {group.colour}?", group.shape),
        "count": _count(scene, rng),
        "total": Question("How many shapes are there?", NUMBERS[sum(each.count for each in scene.groups)]),
        "exists": _exists(scene, rng),
    }
    if not many:
        asked["where"] = Question(f"Where is the {group.shape}?", PLACES[group.cells[0]])
    if _is_pair(scene):
        place = PLACES[group.cells[0]]
        asked["shape at"] = Question(f"What shape is {place}?", group.shape)
        asked["colour at"] = Question(f"What colour is the shape {place}?", group.colour)
    return asked


def paint(scene: Scene, rng: random.Random, widest: int = 160) -> Image.Image:
    """Paint the scene as an RGB picture of 96 to `widest` x 96 to 120 pixels; `rng` sets size, shades, small shifts."""
    width, height = rng.randint(96, widest), rng.randint(96, 120)
    shade = rng.randint(205, 250)
    picture = Image.new("RGB", (width, height), tuple(shade + rng.randint(-5, 5) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    side = min(width, height)
    cell = side / GRID
    left, top = (width - side) / 2, (height - side) / 2
    for group in scene.groups:
        for row, column in group.cells:
            radius = cell * rng.uniform(0.32, 0.42)
            slack = cell / 2 - radius
            x = left + (column + 0.5) * cell + rng.uniform(-slack, slack)
            y = top + (row + 0.5) * cell + rng.uniform(-slack, slack)
            red, green, blue = (min(255, max(0, value + rng.randint(-15, 15))) for value in COLOURS[group.colour])
            stamp(pen, group.shape, (x, y), radius, (red, green, blue))
    return picture


def _opposite(rng: random.Random, amount: int) -> list[Cell]:
    """A cell for a shape that stands alone, or two that face each other across the middle."""
    if amount == 1:
        return [rng.choice(sorted(PLACES))]
    first, second = rng.choice((((1, 0), (1, 2)), ((0, 1), (2, 1))))
    return [first, second] if rng.random() < EVEN else [second, first]


def _is_pair(scene: Scene) -> bool:
    """Whether two shapes face each other across the middle, left and right or top and bottom."""
    cells = {group.cells for group in scene.groups}
    return cells in ({((1, 0),), ((1, 2),)}, {((0, 1),), ((2, 1),)})


def _count(scene: Scene, rng: random.Random) -> Question:
    counts = {group.shape: group.count for group in scene.groups}
    shape = rng.choice(SHAPES) if rng.random() < ABSENT else rng.choice(sorted(counts))
    return Question(f"How many {plural(shape)} are there?", NUMBERS[counts.get(shape, 0)])


def _exists(scene: Scene, rng: random.Random) -> Question:
    truth = {(group.shape, group.colour) for group in scene.groups}
    shape, colour = rng.choice(sorted(truth))
    if rng.random() < EVEN:
        if rng.random() < EVEN:
            shape = rng.choice(SHAPES)
        else:
            colour = rng.choice(sorted(COLOURS))
    return Question(f"Is there a {colour} {shape}?", "yes" if (shape, colour) in truth else "no")


def stamp(
    pen: ImageDraw.ImageDraw, shape: str, at: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    """Draw one shape that fills the circle of `radius` around `at`, in pixels."""
    x, y = at
    arm = radius * 0.3
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "square":
        half = radius * 0.85
        pen.rectangle((x - half, y - half, x + half, y + half), fill=colour)
    elif shape == "triangle":
        pen.polygon(((x, y - radius), (x - radius, y + radius * 0.8), (x + radius, y + radius * 0.8)), fill=colour)
    else:
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)
