"""What tests of the platform share: kubectl with a deadline, and an image pushed the way any image is.

What a test asks again and again, until something holds, goes to the API server over one connection: a start of kubectl
costs fifty times as much, and the machine is busy with what the test waits for.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from functools import cache
from typing import TYPE_CHECKING, Any

from kubernetes import config, dynamic
from kubernetes.dynamic.exceptions import DynamicApiError

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


def read(api_version: str, resource: str, **which: str) -> dict[str, Any]:
    """Return an object, or a list, as the API server has it, without kubectl.

    Args:
        api_version: Group and version.
        resource: Plural name.
        **which: `namespace`, `name`, `label_selector`.
    """
    kind = _connection().resources.get(api_version=api_version, name=resource)
    found: dict[str, Any] = json.loads(_connection().get(kind, serialize=False, **which).data)
    return found


def succeeds(path: str) -> bool:
    """Whether the API server's answer about a path, of its own or of a pod behind it, is a good one."""
    try:
        _connection().request("get", path, serialize=False)
    except DynamicApiError:
        return False
    return True


@cache
def _connection() -> dynamic.DynamicClient:
    # Named, for the library has looked at the environment when it was imported.
    return dynamic.DynamicClient(config.new_client_from_config(os.environ.get("KUBECONFIG")))


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
