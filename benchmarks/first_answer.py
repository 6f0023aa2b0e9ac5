"""`kubectl apply` → first right answer: where the seconds go, beside what Kubernetes takes for the same objects alone.

Run on a cluster that is up, with the images built and pulled: `make images && make bench`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / folder) for folder in ("cluster", "demo", "examples", "images", "locks")]

from multimodal_api.families import Family  # noqa: E402
from multimodal_cluster.errors import ClusterError  # noqa: E402 -- the path above makes them importable
from multimodal_cluster.paths import paths_of  # noqa: E402
from multimodal_cluster.progress import Progress  # noqa: E402
from multimodal_cluster.providers import choose  # noqa: E402
from multimodal_cluster.tools import Tools  # noqa: E402
from multimodal_demo import stage, story  # noqa: E402
from multimodal_demo.questions import Show  # noqa: E402
from multimodal_images import references  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multimodal_demo.moments import Moment

GOAL_S: Final = 20.0
BARE: Final = Path(__file__).with_name("first_answer_bare.yaml")
BARE_S: Final = 120


def main() -> int:
    """Measure and print; 1 when the median is above the goal or an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    try:
        return _measure(runs)
    except ClusterError as error:
        print(error.report(), file=sys.stderr)
        return 1


def _measure(runs: int) -> int:
    paths, progress = paths_of(os.environ), Progress()
    tools = Tools(choose(os.environ, paths, progress))
    images = references.read(paths)
    stage.install_operator(tools, references.file(paths), progress)
    steps, bare, right = [], [], True
    for run in range(1, runs + 1):
        stage.set_up(tools, images["server"], progress)
        with progress.step(f"run {run} of {runs}: Kubernetes alone"):
            bare.append(_bare(tools, images))
        with progress.step(f"run {run} of {runs}: the product"):
            (told,) = story.tell(tools, [Show(Family.NEVA, asked=1)], say=lambda *_: None, show=lambda _: None)
        steps.append(told.timeline.steps())
        right = right and told.answers[0].is_right
    return 0 if _report(steps, bare) <= GOAL_S and right else 1


def _bare(tools: Tools, images: Mapping[str, str]) -> float:
    """Time a Job that does nothing, and after it a Deployment that answers at once: same images, volumes and probes."""
    job, deployment = Template(BARE.read_text()).substitute(images).split("\n# then\n")
    began = time.monotonic()
    stage.kubectl(tools, "apply", "--filename", "-", text=job)
    wait = f"--timeout={BARE_S}s"
    stage.kubectl(tools, "wait", "--for=condition=Complete", "job/bare", wait, seconds=BARE_S + 10)
    stage.kubectl(tools, "apply", "--filename", "-", text=deployment)
    stage.kubectl(tools, "wait", "--for=condition=Available", "deployment/bare", wait, seconds=BARE_S + 10)
    fetch = "import urllib.request; urllib.request.urlopen('http://bare:8000', timeout=30)"
    stage.kubectl(tools, "exec", "client", "--", "python3", "-c", fetch)
    took = time.monotonic() - began
    stage.kubectl(tools, "delete", "job/bare", "deployment/bare", "service/bare", "pvc/bare", seconds=BARE_S)
    return took


def _report(runs: Sequence[Mapping[Moment, float]], bare: Sequence[float]) -> float:
    """Print the table; returns the median of the whole, in seconds."""
    whole = statistics.median(sum(run.values()) for run in runs)
    alone = statistics.median(bare)
    print(f"\n{len(runs)} runs, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; seconds\n")
    print("| step, until | median | least | most | share |")
    print("|---|---:|---:|---:|---:|")
    for moment in runs[0]:
        values = [run[moment] for run in runs]
        middle = statistics.median(values)
        print(f"| {moment} | {middle:.1f} | {min(values):.1f} | {max(values):.1f} | {middle / whole:.0%} |")
    print(f"| **apply → first right answer** (goal {GOAL_S:g}) | **{whole:.1f}** | | | |")
    print(
        f"| Kubernetes alone: empty Job, then a Deployment that answers at once | {alone:.1f} | {min(bare):.1f} "
        f"| {max(bare):.1f} | {alone / whole:.0%} |"
    )
    return whole


if __name__ == "__main__":
    raise SystemExit(main())
