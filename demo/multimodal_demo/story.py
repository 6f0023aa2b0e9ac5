"""The story itself: apply, watch, ask."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from multimodal_api import labels
from multimodal_api.status import ConditionType, Phase
from multimodal_cluster.errors import ClusterError
from multimodal_demo import moments, watching
from multimodal_demo.moments import ANSWER, Moment, Seen, Timeline
from multimodal_demo.questions import Answer, Question
from multimodal_demo.stage import MMD, NAMESPACE, PICTURES, ROOT, kubectl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from queue import Queue

    from multimodal_cluster.tools import Tools

RESOURCE: Final = ROOT / "examples" / "resources" / "neva-cpu.yaml"
ADDRESS: Final = "http://neva:8000"
MODEL: Final = "neva"
# The resource's maxOutputLen.
OUTPUT_TOKENS: Final = 32
FIRST_ANSWER_S: Final = 300.0
ANSWER_S: Final = 60.0
REMEDY: Final = f"`kubectl -n {NAMESPACE} describe {MMD}`"


@dataclass(frozen=True, slots=True)
class Story:
    """What happened.

    Attributes:
        timeline: when what was seen.
        answers: what the model said.
        resource: the MultimodalDeployment at the end.
    """

    timeline: Timeline
    answers: list[Answer]
    resource: dict[str, Any]


def command(question: Question) -> list[str]:
    """Give the command that asks, as a person would type it in the client's pod."""
    return [
        *("mmd", "query", "--url", ADDRESS, "--model_name", MODEL, "--max_output_len", str(OUTPUT_TOKENS)),
        *("--input_text", question.text, "--input_media", f"{PICTURES}/{question.picture.name}"),
    ]


def tell(
    tools: Tools,
    questions: Sequence[Question],
    *,
    say: Callable[[float, str], None],
    show: Callable[[Answer], None],
) -> Story:
    """Apply the resource, follow it to the first answer, ask the rest.

    Args:
        tools: kubectl.
        questions: at least one.
        say: told what changes, with the seconds since the beginning.
        show: shown each answer as it comes.

    Raises:
        ClusterError: it failed, or there was no answer in time.
    """
    first, *rest = questions
    with watching.changes(tools) as changes, ExitStack() as stack:
        began = time.monotonic()
        kubectl(tools, "apply", "--filename", str(RESOURCE))
        say(0.0, f"applied {RESOURCE.relative_to(ROOT)}")
        # It waits in the pod, as any client would that came too early.
        asking = stack.enter_context(tools.lines(*_asking(first, wait=FIRST_ANSWER_S)))
        threading.Thread(target=_hear, args=(asking, changes), daemon=True).start()
        timeline, resource, text = _follow(changes, began, say)
    answers = [Answer(first, text, timeline.steps()[Moment.FIRST_ANSWER])]
    show(answers[0])
    for question in rest:
        answers.append(ask(tools, question))
        show(answers[-1])
    return Story(timeline, answers, resource)


def ask(tools: Tools, question: Question) -> Answer:
    """Ask one question from the client's pod through the Service; raises ClusterError."""
    asked = time.monotonic()
    text = tools.kubectl(*_asking(question, wait=ANSWER_S), seconds=2 * ANSWER_S)
    return Answer(question, text.strip(), time.monotonic() - asked)


def _asking(question: Question, *, wait: float) -> list[str]:
    return ["--namespace", NAMESPACE, "exec", "client", "--", *command(question), "--init_timeout", str(wait)]


def _hear(lines: Iterator[str], changes: Queue[Seen]) -> None:
    changes.put(Seen(ANSWER, {"text": "".join(lines).strip()}, time.monotonic()))


def _follow(
    changes: Queue[Seen], began: float, say: Callable[[float, str], None]
) -> tuple[Timeline, dict[str, Any], str]:
    """Tell what changes until the first answer came and the resource says that it is ready.

    Returns:
        Timeline, resource and answer.

    Raises:
        ClusterError: the resource failed, or there was no answer in time.
    """
    timeline = Timeline(began)
    resource: dict[str, Any] = {}
    text = told = ""
    while not text or resource["status"]["phase"] != Phase.READY:
        try:
            seen = changes.get(timeout=max(0.0, began + FIRST_ANSWER_S + ANSWER_S - time.monotonic()))
        except Empty:
            raise ClusterError("demo", f"no answer after {FIRST_ANSWER_S:g}s; {told}", REMEDY) from None
        for moment in moments.of(seen):
            if timeline.see(moment, seen.at):
                say(seen.at - began, f"● {moment}")
        if seen.kind == ANSWER:
            text = _checked(seen.content["text"])
        elif seen.kind == labels.KIND:
            resource = seen.content
            if "status" in resource and (line := headline(resource)) != told:
                told = line
                say(seen.at - began, line)
            _stop_if_failed(resource)
    return timeline, resource, text


def _checked(text: str) -> str:
    if not text:
        raise ClusterError("demo", "the question got no answer; its words are above", REMEDY)
    return text


def headline(resource: dict[str, Any]) -> str:
    """Say in one line how it stands with the resource."""
    status = resource.get("status", {})
    build = status.get("build") or {}
    ready = moments.condition(resource, ConditionType.READY)
    stage = (
        f" [{build['stage']} {build.get('percent', 0)} %]" if build.get("stage") and not build.get("finishedAt") else ""
    )
    return f"{status.get('phase', Phase.PENDING):10}{stage} {ready.get('message', '')}"


def _stop_if_failed(resource: dict[str, Any]) -> None:
    if resource.get("status", {}).get("phase") == Phase.FAILED:
        message = moments.condition(resource, ConditionType.READY).get("message", "")
        raise ClusterError("demo", f"the resource failed: {message}", REMEDY)
