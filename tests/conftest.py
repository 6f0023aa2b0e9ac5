"""Settings of all tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

# Nothing here is judged by its time: the machine may be busy with a cluster.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares a cluster, a server or a converted model, when several processes run the tests."""
    for item in items:
        shared = next((mark for mark in ("cluster", "triton") if item.get_closest_marker(mark)), item.path.as_posix())
        item.add_marker(pytest.mark.xdist_group(shared))
