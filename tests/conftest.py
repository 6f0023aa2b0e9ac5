"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# Nothing here is judged by its time: the machine may be busy with a cluster.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
