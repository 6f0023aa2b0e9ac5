"""Moments inside the server's processes: `python benchmarks/marks.py -m MODULE ...` runs a module that notes them.

The product does not know of it: functions of it are replaced by ones that write a line before or after. All processes
of a machine share the clock. With one request at a time, the lines between its two ends are its own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import runpy
import statistics
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

FILE_VARIABLE: Final = "BENCHMARK_MARKS"


class Place(NamedTuple):
    """A function, and what it means that it is entered or left."""

    module: str
    name: str
    entered: str = ""
    left: str = ""


PLACES: Final = {
    "multimodal_server.main": (
        Place("multimodal_server.answers", "Responder.answer", "front: called"),
        Place("multimodal_server.answers", "read_question", left="front: tensors checked"),
        Place("multimodal_server.openai", "OpenAiPort._complete", "front: HTTP head read"),
        Place("multimodal_server.openai", "_read", "front: HTTP body read", "front: JSON checked"),
        Place("multimodal_server.openai", "OpenAiPort._prepare", "front: in a thread", "front: prepared"),
        Place("multimodal_server.openai", "OpenAiPort._answer", "front: back in the loop", "front: JSON written"),
        Place("multimodal_server.parts", "_bytes", "front: parts found", "front: base64 decoded"),
        Place("multimodal_recipes.images", "decode", left="front: picture decoded"),
        Place("multimodal_recipes.tokenizer", "Tokenizer.encode", left="front: tokenised"),
        Place("multimodal_server.questions", "preprocess", left="front: preprocessed"),
        Place("multimodal_server.worker_client", "WorkerClient.begin", "front: asks", "front: sent to the worker"),
        Place("multimodal_server.worker_client", "WorkerClient._hand_out", "front: hears {message}"),
        Place("multimodal_server.whole", "Whole._in_copies", left="front: text put together"),
        Place("multimodal_server.replies", "Reply.close", left="front: told to count and log"),
    ),
    "multimodal_worker.main": (
        Place("multimodal_worker.scheduler", "Scheduler.submit", "worker: heard"),
        Place("multimodal_worker.encoder", "BatchedEncoder.encode", left="worker: encoded"),
        Place("multimodal_worker.scheduler", "Scheduler._prompt", left="worker: prompt embedded"),
        Place("multimodal_worker.scheduler", "Scheduler._answer", left="worker: tokens chosen"),
        Place("multimodal_worker.connection", "Connection.send", "worker: says {message}"),
    ),
}
"""By the module that is run."""

IN_TRITON: Final = """

def _mark(name, write=__import__("os").write, clock=__import__("time").perf_counter):
    write(_mark.file, f"{clock()} {name}\\n".encode())

_mark.file = __import__("os").open(__import__("os").environ["BENCHMARK_MARKS"], 1025)
_ask, _give = TritonPythonModel._ask, TritonPythonModel._give

def _marked_ask(self, request):
    _mark("Triton: model called")
    _ask(self, request)

def _marked_give(self, sender, said):
    _give(self, sender, said)
    _mark("Triton: model answered")

TritonPythonModel._ask, TritonPythonModel._give = _marked_ask, _marked_give
"""
"""Behind `triton_model.py`, in Triton's own process. 1025: to write, at the end."""


class Marks:
    """The file of them, for who reads it."""

    def __init__(self, path: Path) -> None:
        """Name it."""
        self._path = path
        self.environment = {FILE_VARIABLE: str(path)}

    def between(self, moments: Sequence[tuple[float, float]]) -> list[tuple[str, float]]:
        """Give the median milliseconds up to each step from the one before, in the order of the first request.

        Args:
            moments: when each request was asked, and answered.
        """
        lines = [line.split(" ", 1) for line in self._path.read_text().splitlines()]
        notes = sorted((float(moment), name) for moment, name in lines)
        taken: defaultdict[str, list[float]] = defaultdict(list)
        place = 0
        for asked, answered in sorted(moments):
            while place < len(notes) and notes[place][0] < asked:
                place += 1
            before, seen = asked, set()
            while place < len(notes) and notes[place][0] < answered:
                moment, name = notes[place]
                place += 1
                if name not in seen:
                    seen.add(name)
                    taken[name].append((moment - before) * 1000)
                    before = moment
            taken["client: answered"].append((answered - before) * 1000)
        taken["client: answered"] = taken.pop("client: answered")
        return [(name, statistics.median(each)) for name, each in taken.items() if len(each) > len(moments) / 2]


def main() -> None:
    """Run a module with marks."""
    _, flag, module, *arguments = sys.argv
    assert flag == "-m"
    file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(name: str) -> None:
        os.write(file, f"{time.perf_counter()} {name}\n".encode())

    for place in PLACES[module]:
        _replace(place, note)
    if module == "multimodal_server.main":
        _reach_into_triton()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _replace(place: Place, note: Callable[[str], None]) -> None:
    owner: Any = importlib.import_module(place.module)
    *path, name = place.name.split(".")
    for step in path:
        owner = getattr(owner, step)
    function = getattr(owner, name)
    of_message = "{message}" in place.entered + place.left

    def notes(arguments: Sequence[Any]) -> tuple[str, str]:
        message = type(arguments[1]).__name__ if of_message else ""
        return place.entered.format(message=message), place.left.format(message=message)

    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with _around(*notes(args), note):
            return function(*args, **kwargs)

    @functools.wraps(function)
    async def marked_async(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with _around(*notes(args), note):
            return await function(*args, **kwargs)

    setattr(owner, name, marked_async if inspect.iscoroutinefunction(function) else marked)


@contextmanager
def _around(entered: str, left: str, note: Callable[[str], None]) -> Iterator[None]:
    if entered:
        note(entered)
    try:
        yield
    finally:
        if left:
            note(left)


def _reach_into_triton() -> None:
    model_class = importlib.import_module("multimodal_server.models").Whole
    files = model_class.get_proxy_model_files

    def marked(model: Any) -> dict[str, bytes]:  # noqa: ANN401
        found = files(model)
        found[f"file:{model.model_version}/model.py"] += IN_TRITON.encode()
        return found

    model_class.get_proxy_model_files = marked


if __name__ == "__main__":
    main()
