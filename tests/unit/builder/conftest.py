from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from support.archives import CLASSIC, DISTRIBUTED, Archive

if TYPE_CHECKING:
    from collections.abc import Callable

# How long an example takes says nothing here: the machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def classic() -> Archive:
    return Archive.read(CLASSIC)


@pytest.fixture
def distributed() -> Archive:
    return Archive.read(DISTRIBUTED)


@pytest.fixture(params=[CLASSIC, DISTRIBUTED], ids=["ckpt", "torch_dist"])
def either(request: pytest.FixtureRequest) -> Callable[[], Archive]:
    return lambda: Archive.read(request.param)
