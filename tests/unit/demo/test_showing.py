"""Media and questions, on the terminal and on the page."""

from __future__ import annotations

import wave
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from multimodal_api.families import Family
from multimodal_demo import page, terminal
from multimodal_demo.moments import Moment, Timeline
from multimodal_demo.questions import SHOWN, Answer, Question, Show
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


def test_frames_of_a_video_stand_side_by_side(tmp_path: Path) -> None:
    """The first and the last of its frames are among them."""
    colours = [(200, shade, 0) for shade in range(0, 200, 20)]
    first, *others = [Image.new("RGB", (8, 8), colour) for colour in colours]
    file = tmp_path / "video.gif"
    first.save(file, save_all=True, append_images=others)
    lines = terminal.draw(file)
    assert len(lines) == 6
    shown = [frame.split(";")[2:5] for frame in lines[0].split(" ")]
    assert shown == [["200", str(shade), "0"] for shade in (0, 60, 120, 180)]


def test_a_sound_is_as_high_as_it_is_loud(tmp_path: Path) -> None:
    file = tmp_path / "sound.wav"
    with wave.open(str(file), "wb") as written:
        written.setparams((1, 2, 16_000, 0, "NONE", ""))
        written.writeframes(np.repeat(np.array([0, -30_000, 15_000], "<i2"), 1600).tobytes())
    third = terminal.SOUND_COLUMNS // 3
    assert terminal.draw(file) == [
        " " * third + "█" * third + " " * third,
        " " * third + "█" * third + "▄" * third,
        " " * third + "█" * third + "█" * third,
    ]


def test_words_stand_beside_the_middle_of_a_picture() -> None:
    assert terminal.beside(["##", "##", "##"], ["word"]) == "##  \n##  word\n##  "


@pytest.mark.parametrize("show", SHOWN, ids=lambda show: show.family)
def test_every_family_has_its_sample_and_questions_about_different_media(show: Show) -> None:
    assert show.resource.is_file()
    questions = show.questions()
    assert len({question.medium for question in questions}) == show.asked
    assert all(question.medium.suffix in page.MEDIA and question.text and question.right for question in questions)


def test_all_families_are_shown() -> None:
    assert {show.family for show in SHOWN} == set(Family)


def test_an_answer_is_right_to_the_letter_and_near_in_time(red_above_blue: Path, tmp_path: Path) -> None:
    question = Question(Family.NEVA, red_above_blue, "What is above?", "red")
    assert Answer(question, "red", 0.1).is_right
    assert not Answer(question, "reddish", 0.1).is_right
    video = tmp_path / "ten_seconds.gif"
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(10)]
    frames[0].save(video, save_all=True, append_images=frames[1:], duration=1000)
    question = Question(Family.LITA, video, "When?", "from <t50>")
    assert Answer(question, "from <5.20>", 0.1).is_right
    assert not Answer(question, "from <6.00>", 0.1).is_right
    assert not Answer(question, "to <5.20>", 0.1).is_right
    assert not Answer(question, "from <t50>", 0.1).is_right


def test_the_page_holds_everything_and_asks_nothing_of_the_net() -> None:
    question = Question(Family.NEVA, SHOWN[0].questions()[0].medium, "Is 1 < 2 & 3?", "yes")
    sound = Question(Family.SALM, SHOWN[-1].questions()[0].medium, "What comes first?", "noise")
    stories = []
    for show, answers, end in (
        (SHOWN[0], [Answer(question, "yes", 0.5), Answer(question, "no", 0.5)], 4.0),
        (SHOWN[-1], [Answer(sound, "noise", 0.5)], 30.0),
    ):
        timeline = Timeline(0.0)
        for moment, at in ((Moment.ACCEPTED, 1.0), (Moment.FIRST_ANSWER, end)):
            timeline.see(moment, at)
        stories.append(Story(show, timeline, answers, RESOURCE))

    html = page.render(stories, datetime(2030, 1, 2, tzinfo=UTC))

    parser = Reader()
    parser.feed(html)
    assert [source.partition(";")[0] for source in parser.sources] == ["data:image/png"] * 2 + ["data:audio/wav"]
    text = "".join(parser.text)
    for part in ("Is 1 < 2 & 3?", "2 of 3", "1 of 2", "4.0 s", "1 of 1 <pods> serve", "wrong: yes", "30.0 s", "noise"):
        assert part in text
    assert text.count("kind: MultimodalDeployment") == 2
    assert "margin-left:25.00%;width:75.00%" in html  # the answer's step: from 1 s to 4 s


def test_the_command_on_the_page_is_the_one_that_ran() -> None:
    question = SHOWN[2].questions()[0]
    words = command(question)
    assert words[:4] == ["mmd", "query", "--url", "http://video-neva:8000"]
    assert words[words.index("--input_media") + 1] == f"/checkpoints/video_neva/heldout/{question.medium.name}"


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
