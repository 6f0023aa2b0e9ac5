"""`mmd`, also `kubectl mmd`: ask a served model, and see what the cluster serves."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_client.client import DEFAULT_TIMEOUT, Client

if TYPE_CHECKING:
    from multimodal_client.question import Wishes

BUILDER = "multimodal-builder"
INTERRUPTED = 130
"""What a shell gives for Ctrl-C."""
QUERY_MAX_OUTPUT_LEN = 128
"""Default of NeMo's query script; its library has 30."""


def main() -> int:
    """Run one command: 0, or 1 with one line that says what is wrong, or 130 when it was interrupted."""
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ProductError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _query(arguments: argparse.Namespace) -> None:
    if arguments.stream and arguments.batch_size != 1:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at="--stream",
            problem=f"is given with --batch_size {arguments.batch_size}, and prints one answer",
            remedy="leave out one of the two",
        )
    family = Family(arguments.model_type)
    client = Client(arguments.url, arguments.model_name, family=family, timeout=arguments.timeout)
    client.wait_ready(arguments.init_timeout)
    options: Wishes = {
        "max_output_len": arguments.max_output_len,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "temperature": arguments.temperature,
        "repetition_penalty": arguments.repetition_penalty,
        "num_beams": arguments.num_beams,
        "lora_uids": arguments.lora_task_uids,
    }
    if arguments.stream:
        for piece in client.stream(arguments.input_text, arguments.input_media, **options):
            print(piece, end="", flush=True)
        print()
    else:
        answers = client.query(arguments.input_text, arguments.input_media, batch_size=arguments.batch_size, **options)
        print("\n".join(answers))


def _status(arguments: argparse.Namespace) -> None:
    try:
        from multimodal_client import kube, status  # noqa: PLC0415 -- the Kubernetes client takes a second to import
    except ModuleNotFoundError as error:
        raise ProductError(
            Reason.BACKEND_UNAVAILABLE,
            at="mmd status",
            problem=f"the Python package {error.name!r} is not installed here",
            remedy="install multimodal-operator[client]; `mmd query` works without it",
        ) from error
    namespace = None if arguments.all_namespaces else arguments.namespace or kube.namespace_of_context()
    resources = kube.list_resources(namespace, arguments.name)
    if not resources:
        print("no MultimodalDeployment found")
        return
    print(status.render(resources, details=arguments.name is not None))


def _inspect(arguments: argparse.Namespace) -> None:
    """Become `multimodal-builder inspect`: its libraries are large, and no part of the client.

    Raises:
        ProductError: it is not installed here.
    """
    program = shutil.which(BUILDER) or shutil.which(BUILDER, path=str(Path(sys.executable).parent))
    if program is None:
        raise ProductError(
            Reason.BACKEND_UNAVAILABLE,
            at="mmd inspect",
            problem=f"the program {BUILDER} is not installed here",
            remedy="install multimodal-operator[builder], or use the builder's image: "
            "docker run --rm -v FOLDER:FOLDER:ro IMAGE inspect FOLDER/CHECKPOINT",
        )
    os.execv(program, [BUILDER, "inspect", *arguments.arguments])  # noqa: S606 -- no shell, and none is wanted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("mmd", description="Multimodal models on Kubernetes.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_query(commands.add_parser("query", help="ask a served model about a picture, a video or a sound"))
    status = commands.add_parser("status", help="show resources and their conditions")
    status.add_argument("name", nargs="?", help="one resource, with its conditions")
    status.add_argument("-n", "--namespace", help="default: that of the kubeconfig's context")
    status.add_argument("-A", "--all-namespaces", action="store_true", help="look everywhere")
    status.set_defaults(run=_status)
    # No argument begins with this character, so that all of them, --help too, are left to the other program.
    about = "show family, sizes, memory and problems of a checkpoint on this machine"
    inspect = commands.add_parser("inspect", help=about, prefix_chars="\0", add_help=False)
    inspect.add_argument("arguments", nargs="*")
    inspect.set_defaults(run=_inspect)
    return parser


def _add_query(query: argparse.ArgumentParser) -> None:
    """Add the flags of NeMo's `query.py`, by the same names."""
    query.set_defaults(run=_query)
    add = query.add_argument
    add(
        "-u",
        "--url",
        default="0.0.0.0",  # noqa: S104 -- NeMo's default
        help="HOST, HOST:PORT or http://HOST:PORT for Triton, grpc://HOST:PORT for Triton over gRPC, "
        "http://HOST:PORT/v1 for OpenAI's API; ports 8000, 8001 and 9000 may be left out",
    )
    add("-mn", "--model_name", required=True, help="name of the model on the wire")
    add("-mt", "--model_type", choices=list(Family), default=Family.NEVA, help="family of the model")
    add("-int", "--input_text", required=True, help="the question")
    add(
        "-im",
        "--input_media",
        required=True,
        help="path or http(s) address of a picture, video or sound; - reads it from standard input",
    )
    add("-bs", "--batch_size", type=int, default=1, help="answers wanted to this one question")
    add("-mol", "--max_output_len", type=int, default=QUERY_MAX_OUTPUT_LEN, help="longest answer, in tokens")
    add("-tk", "--top_k", type=int, default=wire.DEFAULT_TOP_K, help="sample from the best so many tokens; 1 is greedy")
    add("-tpp", "--top_p", type=float, default=wire.DEFAULT_TOP_P, help="sample from this probability mass; 0 is off")
    add("-t", "--temperature", type=float, default=wire.DEFAULT_TEMPERATURE, help="divides the logits")
    add(
        "-rp",
        "--repetition_penalty",
        type=float,
        default=wire.DEFAULT_REPETITION_PENALTY,
        help="above 1 avoids repetition",
    )
    add("-nb", "--num_beams", type=int, default=1, help="1")
    add("-it", "--init_timeout", type=float, default=60.0, help="longest wait for the model to be ready, in seconds")
    add("-lt", "--lora_task_uids", nargs="*", help='"-1"')
    add("--stream", action="store_true", help="print the answer as it comes (sounds alone over Triton's HTTP port)")
    add("--timeout", type=float, default=DEFAULT_TIMEOUT, help="longest wait for the answer, in seconds")


if __name__ == "__main__":
    raise SystemExit(main())
