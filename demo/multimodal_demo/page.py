"""The HTML page: everything in one file."""

from __future__ import annotations

import base64
import shlex
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from multimodal_demo.story import command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from multimodal_demo.moments import Timeline
    from multimodal_demo.questions import Answer
    from multimodal_demo.story import Story

PAGE: Final = Template(Path(__file__).with_name("page.html").read_text())
FAMILY: Final = Template(Path(__file__).with_name("family.html").read_text())
MEDIA: Final = {
    ".png": '<img src="data:image/png;base64,{}" alt="">',
    ".gif": '<img src="data:image/gif;base64,{}" alt="">',
    ".wav": '<audio controls src="data:audio/wav;base64,{}"></audio>',
}


def render(told: Sequence[Story], now: datetime) -> str:
    """Render the page.

    Args:
        told: what happened, by family.
        now: shown as the date.
    """
    return PAGE.substitute(
        date=f"{now:%Y-%m-%d %H:%M} UTC",
        seconds=f"{told[0].timeline.last:.1f}",
        right=sum(story.right for story in told),
        questions=sum(len(story.answers) for story in told),
        families="\n".join(_family(story) for story in told),
    )


def _family(story: Story) -> str:
    engine = story.resource["status"]["engine"]
    return FAMILY.substitute(
        name=story.show.family,
        seconds=f"{story.timeline.last:.1f}",
        right=story.right,
        questions=len(story.answers),
        engine=f"{engine['key']} ({engine['backend']}, {engine.get('sizeBytes', 0) / 1e6:.1f} MB)",
        timeline=_timeline(story.timeline),
        manifest=escape(story.show.resource.read_text()),
        command=escape(shlex.join(command(story.answers[0].question))),
        answers="\n".join(_answer(answer) for answer in story.answers),
        conditions="\n".join(
            f"<tr><td>{each['type']}</td><td>{each['status']}</td><td>{each['reason']}</td><td>{escape(each['message'])}</td></tr>"
            for each in story.resource["status"]["conditions"]
        ),
    )


def _timeline(timeline: Timeline) -> str:
    """Draw a waterfall: each bar begins where the one before it ends."""
    ends = timeline.seconds()
    return "\n".join(_bar(moment, ends[moment], took, timeline.last) for moment, took in timeline.steps().items())


def _bar(moment: str, end: float, took: float, whole: float) -> str:
    place = f"margin-left:{100 * (end - took) / whole:.2f}%;width:{100 * took / whole:.2f}%"
    return (
        f'<tr><td>{escape(moment)}</td><td class="number">{end:.1f} s</td><td class="number">+{took:.1f} s</td>'
        f'<td class="track"><i style="{place}"></i></td></tr>'
    )


def _answer(answer: Answer) -> str:
    file = answer.question.medium
    medium = MEDIA[file.suffix].format(base64.b64encode(file.read_bytes()).decode())
    verdict = "right" if answer.is_right else f"wrong: {answer.question.right}"
    return (
        f'<figure class="{"right" if answer.is_right else "wrong"}">{medium}'
        f"<figcaption><q>{escape(answer.question.text)}</q><b>{escape(answer.text)}</b>"
        f"<small>{escape(verdict)} · {answer.seconds:.2f} s</small></figcaption></figure>"
    )
