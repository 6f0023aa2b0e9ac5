"""Objects as they change, each with the time at which we learned of it."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, contextmanager
from queue import Queue
from typing import TYPE_CHECKING, Any, Final

from multimodal_api import labels
from multimodal_demo.moments import Seen
from multimodal_demo.stage import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_cluster.tools import Tools

WATCH_S: Final = 600
RESOURCES: Final = f"/apis/{labels.API_VERSION}/namespaces/{NAMESPACE}/{labels.PLURAL}"
PODS: Final = f"/api/v1/namespaces/{NAMESPACE}/pods"


@contextmanager
def changes(tools: Tools) -> Iterator[Queue[Seen]]:
    """Watch the demo's resources and the operator's pods, from what is there onwards."""
    found: Queue[Seen] = Queue()
    selector = f"{labels.LABEL_MANAGED_BY}%3D{labels.MANAGED_BY}"
    with ExitStack() as stack:
        for path in (f"{RESOURCES}?", f"{PODS}?labelSelector={selector}&"):
            lines = stack.enter_context(tools.lines("get", "--raw", f"{path}watch=true&timeoutSeconds={WATCH_S}"))
            threading.Thread(target=_read, args=(lines, found), daemon=True).start()
        yield found


def _read(lines: Iterator[str], found: Queue[Seen]) -> None:
    for line in lines:
        event = json.loads(line)
        if event["type"] in {"ADDED", "MODIFIED"}:
            found.put(_seen(event["object"], time.monotonic()))


def _seen(obj: dict[str, Any], at: float) -> Seen:
    kind, meta = obj["kind"], obj["metadata"]
    return Seen(kind, meta["name"] if kind == labels.KIND else meta["labels"][labels.LABEL_INSTANCE], obj, at)
