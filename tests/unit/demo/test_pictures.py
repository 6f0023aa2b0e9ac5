"""Pictures and questions, on the terminal and on the page."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from multimodal_demo import page, questions, terminal
from multimodal_demo.moments import Moment, Timeline
from multimodal_demo.questions import Answer, Question
from multimodal_demo.story import Story, command

if TYPE_CHECKING:
    from pathlib import Path

RESOURCE = {
    "status": {
        "engine": {"key": "0123456789abcdef", "backend": "torch", "sizeBytes": 1_600_000},
        "conditions": [{"type": "Ready", "status": "True", "reason": "AllIsWell", "message": "1 of 1 <pods> serve"}],
    }
}


@pytest.fixture
def red_above_blue(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (8, 8), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 8, 4))
    file = tmp_path / "picture.png"
    picture.save(file)
    return file


def test_a_picture_is_drawn_in_its_colours(red_above_blue: Path) -> None:
    """Two rows of pixels are one line: here a red one above a blue one."""
    assert terminal.picture(red_above_blue, columns=2) == ["\x1b[38;2;255;0;0;48;2;0;0;255m▀" * 2 + "\x1b[0m"]


@pytest.mark.parametrize(("width", "height", "lines"), [(8, 8, 5), (8, 16, 10), (16, 8, 2), (100, 1, 1)])
def test_a_picture_keeps_its_shape(width: int, height: int, lines: int, tmp_path: Path) -> None:
    """A line is two pixels high."""
    file = tmp_path / "picture.png"
    Image.new("RGB", (width, height)).save(file)
    assert len(terminal.picture(file, columns=10)) == lines


def test_words_stand_beside_the_middle_of_a_picture() -> None:
    assert terminal.beside(["##", "##", "##"], ["word"]) == "##  \n##  word\n##  "


def test_every_heldout_question_has_its_picture() -> None:
    loaded = questions.load()
    assert len(loaded) >= 10
    assert all(question.picture.exists() and question.text and question.right for question in loaded)


def test_an_answer_is_right_to_the_letter(red_above_blue: Path) -> None:
    question = Question(red_above_blue, "What is above?", "red")
    assert Answer(question, "red", 0.1).is_right
    assert not Answer(question, "reddish", 0.1).is_right


def test_the_page_holds_everything_and_asks_nothing_of_the_net(red_above_blue: Path) -> None:
    question = Question(red_above_blue, "Is 1 < 2 & 3?", "yes")
    timeline = Timeline(0.0)
    for moment, at in ((Moment.ACCEPTED, 1.0), (Moment.FIRST_ANSWER, 4.0)):
        timeline.see(moment, at)
    story = Story(timeline, [Answer(question, "yes", 0.5), Answer(question, "no", 0.5)], RESOURCE)

    html = page.render(story, "kind: MultimodalDeployment", datetime(2030, 1, 2, tzinfo=UTC))

    parser = Reader()
    parser.feed(html)
    assert parser.sources
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    text = "".join(parser.text)
    for part in ("Is 1 < 2 & 3?", "1 of 2", "4.0 s", "1 of 1 <pods> serve", "kind: MultimodalDeployment", "wrong: yes"):
        assert part in text
    assert "margin-left:25.00%;width:75.00%" in html  # the answer's step: from 1 s to 4 s


def test_the_command_on_the_page_is_the_one_that_ran(red_above_blue: Path) -> None:
    words = command(Question(red_above_blue, "What is above?", "red"))
    assert words[:2] == ["mmd", "query"]
    assert "What is above?" in words


class Reader(HTMLParser):
    """Collects what a page loads and says."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"link", "script", "iframe"}
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text.append(data)
