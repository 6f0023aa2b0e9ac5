"""What tests of the platform share: kubectl with a deadline, and an image pushed the way any image is."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from multimodal_cluster.images import MANIFEST_TYPE, Composed, digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPResponse


def attempt(*arguments: str, stdin: str | None = None, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    """Run kubectl to its end, whatever that is."""
    command = ["kubectl", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=seconds)


def kubectl(*arguments: str, stdin: str | None = None, seconds: float = 90) -> str:
    """Run kubectl; its failure fails the test with its words."""
    done = attempt(*arguments, stdin=stdin, seconds=seconds)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def get(*arguments: str) -> dict[str, Any]:
    """Return an object as the API server has it."""
    found: dict[str, Any] = json.loads(kubectl("get", *arguments, "-o", "json"))
    return found


def apply(*objects: dict[str, Any]) -> None:
    """Apply objects."""
    kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def eventually(said: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Wait until something holds, or fail by its name."""
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, f"after {seconds:g}s still not: {what}"
        time.sleep(0.2)


def push(image: Composed, repository: str, tag: str) -> str:
    """Push an image to the registry that MULTIMODAL_REGISTRY names; return its full name."""
    registry = os.environ["MULTIMODAL_REGISTRY"]
    base = f"http://{registry}/v2/{repository}"
    for blob in (image.config, image.layer):
        with _request("POST", f"{base}/blobs/uploads/") as started:
            location = urllib.parse.urljoin(base, started.headers["Location"])
        joint = "&" if "?" in location else "?"
        with _request("PUT", f"{location}{joint}digest={digest(blob)}", blob, "application/octet-stream"):
            pass
    with _request("PUT", f"{base}/manifests/{tag}", image.manifest, MANIFEST_TYPE):
        pass
    return f"{registry}/{repository}:{tag}"


def _request(method: str, url: str, data: bytes | None = None, kind: str = "") -> HTTPResponse:
    headers = {"Content-Type": kind} if kind else {}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)  # noqa: S310 (http, by design)
    answer: HTTPResponse = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)
    return answer
