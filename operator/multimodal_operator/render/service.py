"""The Service: one name and four ports, whatever the pods behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_operator.kinds import SERVICE
from multimodal_operator.render.common import child, child_labels
from multimodal_operator.want import SERVING, selector_labels

if TYPE_CHECKING:
    from multimodal_operator.kinds import Json
    from multimodal_operator.want import Wanted


def service(want: Wanted) -> Json:
    """Map the ports that users chose to the named ports of the pods, so that a new number touches no pod."""
    triton = want.spec.triton
    ports = {
        "http": triton.http_port,
        "grpc": triton.grpc_port,
        "metrics": triton.metrics_port,
        "openai": want.spec.openai.port,
    }
    return {
        **child(SERVICE, want, want.name, child_labels(want, SERVING)),
        "spec": {
            "type": "ClusterIP",
            "selector": selector_labels(want.name),
            "ports": [
                {"name": name, "port": port, "targetPort": name, "protocol": "TCP"} for name, port in ports.items()
            ],
        },
    }
