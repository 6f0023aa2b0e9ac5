"""The one border to the Kubernetes API: eight calls in this project's words, over a transport that tests can replace.

Every call has a deadline and a bounded number of attempts; what it raises is a `KubeError`, never the HTTP library's.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from multimodal_api.labels import MANAGED_BY
from multimodal_operator import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_operator.kinds import Json, Kind

ATTEMPTS: Final = 4
BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0)
LONGEST_RETRY_AFTER: Final = 10.0
"""Seconds; an API server that asks for more is asked again by the queue, not by a waiting worker."""
PAGE: Final = 500
"""Objects per page of a list."""

BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
UNPROCESSABLE: Final = 422
_REDIRECTS: Final = 300
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_JSON: Final = "application/json"
_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
_MERGE: Final = "application/merge-patch+json"


class KubeError(Exception):
    """The API server refused a call, or did not answer."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code = code
        """HTTP status; 0 when there was no answer."""
        self.reason = reason
        """Kubernetes' machine-readable reason, such as AlreadyExists."""
        self.message = message
        super().__init__(f"{code} {reason}: {message}")


class UnreachableError(KubeError):
    """No answer, or none but errors of the server, in all attempts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    code: int
    body: Json
    retry_after: float | None = None
    """Seconds that the server asks to wait."""


class Transport(Protocol):
    """One authenticated HTTP exchange."""

    async def exchange(
        self, method: str, path: str, *, query: Mapping[str, str], media_type: str, body: bytes | None
    ) -> Answer:
        """Send a request and read its JSON answer.

        Raises:
            OSError: There was no answer; `TimeoutError` is one.
        """

    async def close(self) -> None:
        """Free the connections."""


class Kube:
    """The API, as far as the operator needs it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """Read an object; None when there is none."""
        try:
            return await self._call("get", "GET", kind, kind.path(namespace, name))
        except KubeError as error:
            if error.code == NOT_FOUND:
                return None
            raise

    async def list(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> tuple[list[Json], int]:
        """Read all objects of a namespace (None: of all) that selectors match, and the list's resource version."""
        items: list[Json] = []
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        query = {"limit": str(PAGE), **{name: selector for name, selector in selectors.items() if selector}}
        while True:
            page = await self._call("list", "GET", kind, kind.path(namespace), query=query)
            # Items of a list carry neither kind nor version of their own.
            items += [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page.get("items") or ()]
            if not (more := page["metadata"].get("continue")):
                return items, int(page["metadata"]["resourceVersion"])
            query = {**query, "continue": more}

    async def create(self, kind: Kind, obj: Json) -> Json:
        """Create an object; `AlreadyExists` is an error."""
        path = kind.path(obj["metadata"]["namespace"])
        return await self._call("create", "POST", kind, path, query={"fieldManager": MANAGED_BY}, body=obj)

    async def apply(self, kind: Kind, obj: Json, *, force: bool, subresource: str = "") -> Json:
        """Apply the fields that we own; with `force` they are taken from whoever holds them."""
        meta = obj["metadata"]
        query = {"fieldManager": MANAGED_BY, "force": str(force).lower()}
        path = kind.path(meta["namespace"], meta["name"], subresource)
        return await self._call("apply", "PATCH", kind, path, query=query, media_type=_APPLY, body=obj)

    async def merge(self, kind: Kind, namespace: str, name: str, patch: Json) -> Json:
        """Merge a patch; with a resource version in it, only into exactly that version."""
        path = kind.path(namespace, name)
        query = {"fieldManager": MANAGED_BY}
        return await self._call("patch", "PATCH", kind, path, query=query, media_type=_MERGE, body=patch)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete exactly the object with this uid, its dependents in the background; one that is gone is no error."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._call("delete", "DELETE", kind, kind.path(namespace, name), body=options)
        except KubeError as error:
            if error.code not in {NOT_FOUND, CONFLICT}:  # gone, or another one has its name
                raise

    async def close(self) -> None:
        """Free the connections."""
        await self._transport.close()

    async def _call(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        media_type: str = _JSON,
        body: Json | None = None,
    ) -> Json:
        payload = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        refusal = KubeError(0, "Unreachable", "no answer")
        for attempt in range(ATTEMPTS):
            try:
                answer = await self._transport.exchange(
                    method, path, query=query or {}, media_type=media_type, body=payload
                )
            except OSError as error:
                metrics.API_CALLS.labels(verb, kind.name, "none").inc()
                refusal = UnreachableError(0, type(error).__name__, f"{method} {path}: {error}")
                wait = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            else:
                metrics.API_CALLS.labels(verb, kind.name, str(answer.code)).inc()
                if answer.code < _REDIRECTS:
                    return answer.body
                refusal = _refusal(method, path, answer)
                if answer.code not in _RETRIED:
                    raise refusal
                wait = answer.retry_after or BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            if attempt + 1 < ATTEMPTS:
                spread = 1.0 + random.random() / 4  # noqa: S311 -- no secret
                await asyncio.sleep(min(wait, LONGEST_RETRY_AFTER) * spread)
        raise refusal


def _refusal(method: str, path: str, answer: Answer) -> KubeError:
    body: dict[str, Any] = answer.body if isinstance(answer.body, dict) else {}
    reason, message = str(body.get("reason", "")), str(body.get("message", ""))
    kind = UnreachableError if answer.code in _RETRIED else KubeError
    return kind(answer.code, reason or "Unknown", message or f"{method} {path} was answered with {answer.code}")
