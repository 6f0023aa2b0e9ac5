"""The story itself: apply, watch, ask."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from multimodal_api import labels
from multimodal_api.status import ConditionType, Phase
from multimodal_cluster.errors import ClusterError
from multimodal_demo import moments, watching
from multimodal_demo.moments import ANSWER, Moment, Seen, Timeline
from multimodal_demo.questions import TINY, Answer, Question, Show
from multimodal_demo.stage import MEDIA, MMD, NAMESPACE, kubectl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from queue import Queue

    from multimodal_cluster.tools import Tools

    Say = Callable[[float, str, str], None]

# The resources' maxOutputLen.
OUTPUT_TOKENS: Final = 32
FIRST_ANSWER_S: Final = 300.0
ANSWER_S: Final = 60.0


@dataclass(slots=True)
class Story:
    """What happened to one family.

    Attributes:
        show: what was to be shown.
        timeline: when what was seen.
        answers: what the model said.
        resource: the MultimodalDeployment as it was seen last.
    """

    show: Show
    timeline: Timeline
    answers: list[Answer] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)

    @property
    def is_told(self) -> bool:
        """There is an answer, and the resource says that it is ready."""
        return bool(self.answers) and self.resource.get("status", {}).get("phase") == Phase.READY

    @property
    def right(self) -> int:
        """How many answers are right."""
        return sum(answer.is_right for answer in self.answers)


def command(question: Question) -> list[str]:
    """Give the command that asks, as a person would type it in the client's pod."""
    name = question.family
    return [
        *("mmd", "query", "--url", f"http://{name}:8000", "--model_name", name, "--model_type", name),
        *("--max_output_len", str(OUTPUT_TOKENS)),
        *("--input_text", question.text, "--input_media", f"{MEDIA}/{question.medium.relative_to(TINY)}"),
    ]


def tell(tools: Tools, shows: Sequence[Show], *, say: Say, show: Callable[[Answer], None]) -> list[Story]:
    """Apply resources side by side, follow each to its first answer, ask the rest.

    Args:
        tools: kubectl.
        shows: the families.
        say: told what changes: the seconds since the beginning, who, what.
        show: shown each answer as it comes.

    Raises:
        ClusterError: one failed, or there was no answer in time.
    """
    with watching.changes(tools) as changes, ExitStack() as stack:
        began = time.monotonic()
        kubectl(tools, "apply", *(f"--filename={each.resource}" for each in shows))
        for each in shows:
            say(0.0, each.family, f"applied {each.resource.name}")
            # It waits in the pod, as any client would that came too early.
            asking = stack.enter_context(tools.lines(*_asking(each.questions()[0], wait=FIRST_ANSWER_S)))
            threading.Thread(target=_hear, args=(each.family, asking, changes), daemon=True).start()
        stories: dict[str, Story] = {each.family: Story(each, Timeline(began)) for each in shows}
        _follow(stories, changes, began, say)
    for story in stories.values():
        show(story.answers[0])
        for question in story.show.questions()[1:]:
            story.answers.append(ask(tools, question))
            show(story.answers[-1])
    return list(stories.values())


def ask(tools: Tools, question: Question) -> Answer:
    """Ask one question from the client's pod through the Service; raises ClusterError."""
    asked = time.monotonic()
    text = tools.kubectl(*_asking(question, wait=ANSWER_S), seconds=2 * ANSWER_S)
    return Answer(question, text.strip(), time.monotonic() - asked)


def _asking(question: Question, *, wait: float) -> list[str]:
    return ["--namespace", NAMESPACE, "exec", "client", "--", *command(question), "--init_timeout", str(wait)]


def _hear(family: str, lines: Iterator[str], changes: Queue[Seen]) -> None:
    changes.put(Seen(ANSWER, family, {"text": "".join(lines).strip()}, time.monotonic()))


def _follow(stories: dict[str, Story], changes: Queue[Seen], began: float, say: Say) -> None:
    """Tell what changes until every family has answered and says that it is ready.

    Raises:
        ClusterError: one failed, or there was no answer in time.
    """
    told: dict[str, str] = {}
    while late := [family for family, story in stories.items() if not story.is_told]:
        try:
            seen = changes.get(timeout=max(0.0, began + FIRST_ANSWER_S + ANSWER_S - time.monotonic()))
        except Empty:
            problem = f"no answer after {FIRST_ANSWER_S:g}s; {told.get(late[0], '')}"
            raise ClusterError("demo", problem, _remedy(late[0])) from None
        story = stories.get(seen.name)
        if story is None:
            continue  # of an act before this one
        for moment in moments.of(seen):
            if story.timeline.see(moment, seen.at):
                say(seen.at - began, seen.name, f"● {moment}")
        if seen.kind == ANSWER:
            story.answers.append(_first_answer(story, seen))
        elif seen.kind == labels.KIND:
            story.resource = seen.content
            line = headline(seen.content)
            # Side by side, the moments are enough.
            if len(stories) == 1 and line != told.get(seen.name):
                say(seen.at - began, seen.name, line)
            told[seen.name] = line
            _stop_if_failed(seen)


def _first_answer(story: Story, seen: Seen) -> Answer:
    text = seen.content["text"]
    if not text:
        raise ClusterError("demo", "the question got no answer; its words are above", _remedy(seen.name))
    return Answer(story.show.questions()[0], text, story.timeline.steps()[Moment.FIRST_ANSWER])


def headline(resource: dict[str, Any]) -> str:
    """Say in one line how it stands with the resource."""
    status = resource.get("status", {})
    build = status.get("build") or {}
    ready = moments.condition(resource, ConditionType.READY)
    stage = (
        f" [{build['stage']} {build.get('percent', 0)} %]" if build.get("stage") and not build.get("finishedAt") else ""
    )
    return f"{status.get('phase', Phase.PENDING):10}{stage} {ready.get('message', '')}"


def _stop_if_failed(seen: Seen) -> None:
    if seen.content.get("status", {}).get("phase") == Phase.FAILED:
        message = moments.condition(seen.content, ConditionType.READY).get("message", "")
        raise ClusterError("demo", f"the resource failed: {message}", _remedy(seen.name))


def _remedy(name: str) -> str:
    return f"`kubectl -n {NAMESPACE} describe {MMD} {name}`"
