"""HTTP to the API server: where it is, who we are, and tokens that change while we run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import kopf

from multimodal_operator.kube import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_operator.kinds import Json

CALL_SECONDS: Final = 20.0
"""Deadline of one exchange; no call of ours is a long one."""
CONNECTIONS: Final = 16
_UNAUTHORIZED: Final = 401


def log_in(settings: kopf.OperatorSettings | None = None) -> kopf.ConnectionInfo:
    """Find the API server and our credentials: the pod's service account, else the kubeconfig.

    Raises:
        kopf.LoginError: There is neither.
    """
    settings = settings or kopf.OperatorSettings()
    found = kopf.login_with_service_account(settings=settings)
    if found is not None:
        # By address: a cluster whose DNS is down needs its operators most.
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return replace(found, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    found = kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise kopf.LoginError("there is no service account's token and no kubeconfig: set KUBECONFIG")
    return found


class HttpTransport:
    """aiohttp under `kube.Transport`; made inside the running event loop."""

    def __init__(self, info: kopf.ConnectionInfo | None = None) -> None:
        self._info = info or log_in()
        self._fixed = info is not None
        connector = aiohttp.TCPConnector(
            limit=CONNECTIONS, ssl=self._info.as_ssl_context() if self._info.server.startswith("https") else False
        )
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=CALL_SECONDS), proxy=self._info.proxy_url
        )

    async def exchange(
        self, method: str, path: str, *, query: Mapping[str, str], media_type: str, body: bytes | None
    ) -> Answer:
        """Send a request; an expired token is read anew once."""
        answer = await self._exchange(method, path, query, media_type, body)
        if answer.code == _UNAUTHORIZED and not self._fixed:
            self._info = log_in()
            answer = await self._exchange(method, path, query, media_type, body)
        return answer

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _exchange(
        self, method: str, path: str, query: Mapping[str, str], media_type: str, body: bytes | None
    ) -> Answer:
        headers = {"Content-Type": media_type, "Accept": "application/json", **self._info.as_http_headers()}
        try:
            async with self._session.request(
                method, self._info.server.rstrip("/") + path, params=query, data=body, headers=headers
            ) as response:
                raw = await response.read()
                return Answer(response.status, _parse(raw), _seconds(response.headers.get("Retry-After")))
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error


def _parse(raw: bytes) -> Json:
    try:
        body: Any = json.loads(raw)
    except ValueError:
        return {"message": raw.decode(errors="replace")[:1024]}
    return body if isinstance(body, dict) else {}


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
