"""The command line: `python3 demo`."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from multimodal_cluster.errors import ClusterError
from multimodal_cluster.paths import paths_of
from multimodal_cluster.progress import Progress
from multimodal_cluster.providers import choose
from multimodal_cluster.tools import Tools
from multimodal_demo import page, questions, stage, story, terminal
from multimodal_images import references

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_demo.questions import Answer
    from multimodal_demo.story import Story

DESCRIPTION = """\
On a cluster that is up, with the images built: installs the operator, applies one resource, shows its status until it
answers, and asks about pictures. `make demo` does all that comes before it too. CLUSTER chooses the cluster.
"""
OUTPUT: Final = stage.ROOT / "out" / "demo.html"
# What the tiny model was trained until it reached.
RIGHT_SHARE: Final = 0.95


def main(arguments: Sequence[str]) -> int:
    """Run the demo; 0 when the answers are right."""
    argparse.ArgumentParser(
        prog="python3 demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    try:
        told = _run()
    except ClusterError as error:
        print(error.report(), file=sys.stderr)
        return 1
    return _conclude(told)


def _run() -> Story:
    paths, progress = paths_of(os.environ), Progress()
    tools = Tools(choose(os.environ, paths, progress))
    images = references.read(paths)
    stage.install_operator(tools, references.file(paths), progress)
    stage.set_up(tools, images["server"], progress)
    print()
    return story.tell(tools, questions.load(), say=_say, show=_show)


def _say(seconds: float, text: str) -> None:
    print(f"{seconds:7.1f}s  {text}", flush=True)


def _show(answer: Answer) -> None:
    verdict = "right" if answer.is_right else f"wrong, it is: {answer.question.right}"
    words = [answer.question.text, f"→ {answer.text}", f"  ({verdict}; {answer.seconds:.1f} s)"]
    if terminal.shows_colours():
        print("\n" + terminal.beside(terminal.picture(answer.question.picture), words), flush=True)
    else:
        print(f"{answer.question.picture.name}  {'  '.join(words)}", flush=True)


def _conclude(told: Story) -> int:
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(page.render(told, story.RESOURCE.read_text(), datetime.now(UTC)))
    print("\nfrom kubectl apply to the first answer:")
    for moment, took in told.timeline.steps().items():
        print(f"  {moment:18}{took:6.1f} s")
    right, asked = sum(answer.is_right for answer in told.answers), len(told.answers)
    print(f"{right} of {asked} answers are right; the page: {OUTPUT.relative_to(stage.ROOT)}")
    print('\nlook around:  eval "$(python3 cluster env)"; kubectl -n multimodal-demo describe mmd neva')
    return 0 if right >= RIGHT_SHARE * asked else 1
