"""Names that the operator writes on objects, and names that must agree between programs."""

from __future__ import annotations

from typing import Final

GROUP: Final = "multimodal.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "MultimodalDeployment"
PLURAL: Final = "multimodaldeployments"
SINGULAR: Final = "multimodaldeployment"
SHORT_NAME: Final = "mmd"
CATEGORY: Final = "multimodal"

FINALIZER: Final = f"{GROUP}/cleanup"
MANAGED_BY: Final = "multimodal-operator"
"""Value of `app.kubernetes.io/managed-by` on every child, and the operator's server-side apply field manager."""

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_ENGINE_KEY: Final = f"{GROUP}/engine-key"
LABEL_ENGINE_STORE: Final = f"{GROUP}/engine-store"
