"""`python3 cluster up|down|status|env|logs|restart`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING

from multimodal_cluster import gpus
from multimodal_cluster.errors import ClusterError, tail
from multimodal_cluster.paths import paths_of
from multimodal_cluster.progress import Progress
from multimodal_cluster.providers import Provider, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
A real Kubernetes for the demo and the tests.

CLUSTER chooses which: `local` makes one of processes of this machine, `kind` makes one in Docker, `current` uses the
one that KUBECONFIG names. Without it: kind where Docker answers and kind is installed, else local.
MULTIMODAL_CACHE is the folder that everything lies in, CLUSTER_GPUS the number of GPUs that the node offers. For kind,
CLUSTER_NODE_IMAGE and CLUSTER_REGISTRY_IMAGE name images that Docker has or can pull (default: kind's own, registry:3).
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    asked = _parser().parse_args(arguments)
    try:
        paths = paths_of(os.environ)
        if asked.command == "keep-gpus":
            gpus.keep(paths.kubeconfig, asked.node, asked.count)
        provider = choose(os.environ, paths, Progress())
        return _run(asked, provider)
    except ClusterError as error:
        print(error.report(), file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cluster", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring the cluster up; harmless when it is up")
    down = commands.add_parser("down", help="take it down; images and what was pushed stay for the next time")
    down.add_argument("--purge", action="store_true", help="remove images, what was pushed, and logs too")
    commands.add_parser("status", help="say what each part does; the exit status is 0 if all are ready")
    commands.add_parser("env", help='print the variables that programs need; use as: eval "$(python3 cluster env)"')
    logs = commands.add_parser("logs", help="print the end of a part's log")
    logs.add_argument("part")
    logs.add_argument("--lines", type=int, default=100)
    restart = commands.add_parser("restart", help="end one part and bring it up again")
    restart.add_argument("part")
    keep = commands.add_parser("keep-gpus", help="what the part gpu-keeper runs")
    keep.add_argument("node")
    keep.add_argument("count", type=int)
    return parser


def _run(asked: argparse.Namespace, provider: Provider) -> int:
    match asked.command:
        case "up":
            provider.up()
            print(f'the cluster is up; use it with: eval "$(python3 {shlex.quote(sys.argv[0])} env)"')
        case "down":
            provider.down(purge=asked.purge)
        case "status":
            return _print_status(provider.status())
        case "env":
            _print_environment(provider)
        case "logs":
            log = provider.log(asked.part)
            print("\n".join([f"# {log}", *tail(log, asked.lines)]))
        case "restart":
            provider.restart(asked.part)
    return 0


def _print_status(status: dict[str, str]) -> int:
    width = max(map(len, status))
    for part, state in status.items():
        print(f"{part:{width}}  {state}")
    return 0 if all(state == "ready" for state in status.values()) else 1


def _print_environment(provider: Provider) -> None:
    print(f"export CLUSTER={provider.name}")
    for name, value in provider.env().items():
        # What is before the user's own PATH wins, and the user's stays.
        shown = f'{shlex.quote(value)}:"$PATH"' if name == "PATH" else shlex.quote(value)
        print(f"export {name}={shown}")
