"""The border to the API server, over real HTTP: what is retried, what is refused, and in which words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import kopf
import pytest
from aiohttp import web

from multimodal_operator import kube as kube_module
from multimodal_operator import transport
from multimodal_operator.kinds import JOB, KINDS, POD, RESOURCE, SERVICE, Kind
from multimodal_operator.kube import Kube, KubeError, UnreachableError
from multimodal_operator.transport import HttpTransport

Handler = Callable[[web.Request], Any]


class Server:
    """Answers with what a test put in, in order, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, Any], dict[str, str]]] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    def will(self, code: int, body: dict[str, Any] | None = None, **headers: str) -> None:
        self.answers.append((code, body or {}, {name.replace("_", "-"): value for name, value in headers.items()}))

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path, dict(request.query), await request.read()))
        self.headers = request.headers
        code, body, headers = self.answers.pop(0)
        return web.Response(status=code, text=json.dumps(body), headers=headers)


@pytest.fixture(name="server")
async def _server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield server
    await runner.cleanup()


@pytest.fixture(name="kube")
async def _kube(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    monkeypatch.setattr(kube_module, "BACKOFF_SECONDS", (0.001,))
    kube = Kube(HttpTransport(kopf.ConnectionInfo(server=server.url, token="secret")))  # type: ignore[attr-defined]  # noqa: S106 -- of a test
    yield kube
    await kube.close()


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (RESOURCE, "/apis/multimodal.dev/v1alpha1/namespaces/n/multimodaldeployments/x"),
        (SERVICE, "/api/v1/namespaces/n/services/x"),
        (JOB, "/apis/batch/v1/namespaces/n/jobs/x"),
    ],
)
async def test_paths_and_credentials(kube: Kube, server: Server, kind: Kind, path: str) -> None:
    server.will(200, {"metadata": {"name": "x"}})
    assert await kube.get(kind, "n", "x") == {"metadata": {"name": "x"}}
    assert server.asked[0][:2] == ("GET", path)
    assert server.headers["Authorization"] == "Bearer secret"


async def test_what_is_not_there_is_none(kube: Kube, server: Server) -> None:
    server.will(404, {"reason": "NotFound"})
    assert await kube.get(POD, "n", "x") is None


async def test_lists_come_in_pages(kube: Kube, server: Server) -> None:
    server.will(200, {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [{"metadata": {"name": "a"}}]})
    server.will(200, {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]})
    items, version = await kube.list(POD, None, labels="a=b", fields="c=d")
    assert ([item["metadata"]["name"] for item in items], version) == (["a", "b"], 7)
    assert items[0]["kind"] == "Pod"
    assert server.asked[1][2] == {"limit": "500", "labelSelector": "a=b", "fieldSelector": "c=d", "continue": "more"}


async def test_apply_names_its_manager(kube: Kube, server: Server) -> None:
    server.will(200, {"metadata": {}})
    await kube.apply(SERVICE, {"metadata": {"namespace": "n", "name": "x"}}, force=True)
    method, path, query, _body = server.asked[0]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/n/services/x")
    assert query == {"fieldManager": "multimodal-operator", "force": "true"}
    assert server.headers["Content-Type"] == "application/apply-patch+yaml"


async def test_delete_means_exactly_this_object(kube: Kube, server: Server) -> None:
    server.will(200, {})
    await kube.delete(JOB, "n", "x", "uid-1")
    assert json.loads(server.asked[0][3]) == {"propagationPolicy": "Background", "preconditions": {"uid": "uid-1"}}
    for code in (404, 409):
        server.will(code, {"reason": "NotFound"})
        await kube.delete(JOB, "n", "x", "uid-1")


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_a_passing_error_is_outlived(kube: Kube, server: Server, code: int) -> None:
    server.will(code, {"reason": "Busy"})
    server.will(code, {"reason": "Busy"})
    server.will(200, {"metadata": {}})
    assert await kube.get(POD, "n", "x") == {"metadata": {}}
    assert len(server.asked) == 3


async def test_attempts_are_bounded(kube: Kube, server: Server) -> None:
    for _ in range(kube_module.ATTEMPTS):
        server.will(503, {"reason": "ServiceUnavailable", "message": "later"})
    with pytest.raises(UnreachableError, match="503 ServiceUnavailable: later"):
        await kube.get(POD, "n", "x")
    assert len(server.asked) == kube_module.ATTEMPTS


async def test_the_servers_wish_for_a_pause_is_kept(
    kube: Kube, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(kube_module.asyncio, "sleep", sleep)
    server.will(429, {}, Retry_After="3")
    server.will(429, {}, Retry_After="3600")
    server.will(200, {"metadata": {}})
    await kube.get(POD, "n", "x")
    assert 3 <= slept[0] <= 4
    assert slept[1] <= 1.25 * kube_module.LONGEST_RETRY_AFTER


@pytest.mark.parametrize("code", [400, 401, 403, 409, 422])
async def test_a_refusal_is_final_and_keeps_its_words(kube: Kube, server: Server, code: int) -> None:
    server.will(code, {"reason": "No", "message": "because"})
    with pytest.raises(KubeError) as caught:
        await kube.create(JOB, {"metadata": {"namespace": "n", "name": "x"}})
    assert (caught.value.code, caught.value.reason, caught.value.message) == (code, "No", "because")
    assert not isinstance(caught.value, UnreachableError)
    assert len(server.asked) == 1


async def test_nobody_there_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "BACKOFF_SECONDS", (0.001,))
    kube = Kube(HttpTransport(kopf.ConnectionInfo(server="http://127.0.0.1:1")))
    with pytest.raises(UnreachableError):
        await kube.get(POD, "n", "x")
    await kube.close()


async def test_an_expired_token_is_read_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["old", "new"])
    monkeypatch.setattr(
        transport,
        "log_in",
        lambda: kopf.ConnectionInfo(server=server.url, token=next(tokens)),  # type: ignore[attr-defined]
    )
    kube = Kube(HttpTransport())
    server.will(401, {})
    server.will(200, {"metadata": {}})
    await kube.get(POD, "n", "x")
    assert server.headers["Authorization"] == "Bearer new"
    await kube.close()


def test_the_service_account_is_used_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t")  # noqa: S106 -- of a test
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: found)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert transport.log_in().server == "https://[fd00::1]:6443"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert transport.log_in().server == "https://10.0.0.1:6443"


def test_without_any_credentials_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: None)
    monkeypatch.setattr(kopf, "login_with_kubeconfig", lambda **_: None)
    with pytest.raises(kopf.LoginError, match="KUBECONFIG"):
        transport.log_in()


def test_secrets_are_never_touched() -> None:
    assert "secrets" not in {kind.plural for kind in KINDS}
