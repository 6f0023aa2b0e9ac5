"""The peer of `reconcile.py`: the least that a kopf operator can do: one handler that writes one status field."""

from __future__ import annotations

from typing import Any

import kopf


@kopf.on.startup()
def configure(settings: kopf.OperatorSettings, **_: Any) -> None:  # noqa: ANN401 -- kopf's protocol
    """Leave out what kopf would write by itself."""
    settings.posting.enabled = False
    settings.scanning.disabled = True


@kopf.on.event("multimodal.dev", "v1alpha1", "multimodaldeployments")
async def observe(meta: kopf.Meta, status: kopf.Status, patch: kopf.Patch, **_: Any) -> None:  # noqa: ANN401
    """Report the generation."""
    if status.get("observedGeneration") != meta["generation"]:
        patch.status["observedGeneration"] = meta["generation"]
