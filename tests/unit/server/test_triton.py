"""What of Triton can be shown without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytriton.models.manager

from multimodal_server.triton import LOAD_SECONDS, Addresses, Triton, free_port


@pytest.fixture
def triton() -> Iterator[Triton]:
    ports = [free_port() for _ in range(3)]
    made = Triton(Addresses("127.0.0.1", *ports), stop_seconds=1.0)
    yield made
    made.discard()


@pytest.mark.usefixtures("triton")
def test_a_model_s_processes_may_take_long_to_start() -> None:
    # PyTriton gives up after 60 seconds, whatever its init_timeout_s: to its client, loading is one more inference.
    loading = pytriton.models.manager.ModelClient("http://127.0.0.1:1", "m", lazy_init=True)
    (pool,) = {
        client._client_stub._connection_pool.network_timeout
        for client in (loading._general_client, loading._infer_client)
    }
    assert pool == LOAD_SECONDS
    loading.close()
