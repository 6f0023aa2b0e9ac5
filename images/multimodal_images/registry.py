"""What a registry holds."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Final

from multimodal_cluster.errors import ClusterError

TIMEOUT_S: Final = 10.0
NOT_FOUND: Final = 404
LOOPBACK: Final = ("127.0.0.1:", "localhost:")
MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


def is_local(registry: str) -> bool:
    """Tell whether a registry is on this machine, where it speaks plain HTTP and asks for no credentials."""
    return registry.startswith(LOOPBACK)


def has(registry: str, name: str, tag: str) -> bool:
    """Tell whether a local registry holds an image; of others it is not known: a push sends only what they lack.

    Raises:
        ClusterError: it does not answer.
    """
    if not is_local(registry):
        return False
    host, _, folder = registry.partition("/")
    path = "/".join(part for part in (folder, name) if part)
    request = urllib.request.Request(
        f"http://{host}/v2/{path}/manifests/{tag}", method="HEAD", headers={"Accept": ", ".join(MANIFESTS)}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        if error.code == NOT_FOUND:
            return False
        raise ClusterError("registry", f"{registry} answers {error.code}", "read the registry's log") from error
    except OSError as error:
        raise ClusterError("registry", f"{registry} does not answer: {error}", "run `make cluster-up` first") from error
