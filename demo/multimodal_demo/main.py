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
from multimodal_demo import page, stage, story, terminal
from multimodal_demo.questions import SHOWN
from multimodal_images import references

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_demo.questions import Answer
    from multimodal_demo.story import Story

DESCRIPTION = """\
On a cluster that is up, with the images built: installs the operator, applies the resource of one family, shows its
status until it answers, and asks about pictures; then those of all other families side by side, and asks about
pictures, videos and sounds.
`make demo` does all that comes before it too. CLUSTER chooses the cluster.
"""
OUTPUT: Final = stage.ROOT / "out" / "demo.html"
# What the tiny models were trained until they reached.
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


def _run() -> list[Story]:
    paths, progress = paths_of(os.environ), Progress()
    tools = Tools(choose(os.environ, paths, progress))
    images = references.read(paths)
    stage.install_operator(tools, references.file(paths), progress)
    stage.set_up(tools, images["server"], progress)
    told = []
    for act in (SHOWN[:1], SHOWN[1:]):
        print()
        told += story.tell(tools, act, say=_say, show=_show)
    return told


def _say(seconds: float, who: str, text: str) -> None:
    print(f"{seconds:7.1f}s  {who:11}{text}", flush=True)


def _show(answer: Answer) -> None:
    asked = answer.question
    verdict = "right" if answer.is_right else f"wrong, it is: {asked.right}"
    words = [asked.text, f"→ {answer.text}", f"  ({verdict}; {answer.seconds:.1f} s)"]
    if terminal.shows_colours():
        print("\n" + terminal.beside(terminal.draw(asked.medium), words), flush=True)
    else:
        print(f"{asked.family:11}{asked.medium.name}  {'  '.join(words)}", flush=True)


def _conclude(told: Sequence[Story]) -> int:
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(page.render(told, datetime.now(UTC)))
    print("\nfrom kubectl apply to the first answer, one family alone and then the others side by side:")
    for moment, took in told[0].timeline.steps().items():
        print(f"  {moment:18}{took:6.1f} s")
    for one in told:
        print(f"  {one.show.family:18}{one.timeline.last:6.1f} s   {one.right} of {len(one.answers)} answers right")
    right, asked = sum(one.right for one in told), sum(len(one.answers) for one in told)
    print(f"{right} of {asked} answers are right; the page: {OUTPUT.relative_to(stage.ROOT)}")
    print(f'\nlook around:  eval "$(python3 cluster env)"; kubectl -n {stage.NAMESPACE} get mmd')
    return 0 if right >= RIGHT_SHARE * asked else 1
