"""The few requests that the scripts themselves make: health checks, and the node's status."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S: Final = 5.0


class Api:
    """The API server, as the user of one kubeconfig sees it."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server: str = cluster["server"]
        self._tls = ssl.create_default_context(cadata=_decode(cluster["certificate-authority-data"]))
        with tempfile.NamedTemporaryFile("w") as pair:  # the standard library takes them from a file only
            pair.write(_decode(user["client-certificate-data"]) + _decode(user["client-key-data"]))
            pair.flush()
            self._tls.load_cert_chain(pair.name)
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=self._tls),
            urllib.request.ProxyHandler({}),  # the address is this machine's own: a proxy would not find it
        )

    def get(self, path: str) -> bytes:
        """Return what a path answers; raises OSError when it does not answer well."""
        with self._opener.open(f"{self._server}{path}", timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read()
        return body

    def patch(self, path: str, operations: list[dict[str, object]]) -> None:
        """Apply a JSON patch; raises OSError when it is refused."""
        request = urllib.request.Request(  # noqa: S310 (the server is https by construction)
            f"{self._server}{path}",
            data=json.dumps(operations).encode(),
            method="PATCH",
            headers={"Content-Type": "application/json-patch+json"},
        )
        with self._opener.open(request, timeout=TIMEOUT_S):
            pass

    def watch(self, path: str, *, seconds: int) -> Iterator[dict[str, Any]]:
        """Yield watch events until the server ends the watch; raises OSError when the connection breaks."""
        joint = "&" if "?" in path else "?"
        url = f"{self._server}{path}{joint}watch=true&timeoutSeconds={seconds}"
        with self._opener.open(url, timeout=seconds + TIMEOUT_S) as answer:
            for line in answer:
                yield json.loads(line)

    def says_ok(self, path: str) -> bool:
        """Tell whether a health path answers well."""
        try:
            self.get(path)
        except OSError:
            return False
        return True


def _decode(data: str) -> str:
    return base64.b64decode(data).decode()


def answers(url: str) -> bool:
    """Tell whether a health address of this machine answers well; certificates are not checked: nothing is told."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=unchecked), urllib.request.ProxyHandler({})
    )
    try:
        with opener.open(url, timeout=TIMEOUT_S):
            return True
    except OSError:
        return False
