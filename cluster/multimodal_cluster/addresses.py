"""Names, addresses and versions that every part agrees on.

198.18.0.0/15 is the range for benchmarks between networks: nothing real answers there, so it collides with no network
of the machine.
"""

from __future__ import annotations

from typing import Final

NODE_NAME: Final = "multimodal"
NODE_IP: Final = "198.18.0.1"
POD_RANGE: Final = "198.18.128.0/17"
POD_GATEWAY: Final = "198.18.128.1"
SERVICE_RANGE: Final = "198.19.0.0/16"
API_SERVICE_IP: Final = "198.19.0.1"
DNS_SERVICE_IP: Final = "198.19.0.10"
DNS_DOMAIN: Final = "cluster.local"

# Anyone in a pod can reach the node's address, so etcd, which asks for no credentials, listens on the loopback.
ETCD_URL: Final = "http://127.0.0.1:2379"
ETCD_PEER_URL: Final = "http://127.0.0.1:2380"
API_PORT: Final = 6443
API_URL: Final = f"https://{NODE_IP}:{API_PORT}"
REGISTRY: Final = "127.0.0.1:5000"

KUBELET_HEALTH_PORT: Final = 10248
KUBELET_PORT: Final = 10250
PROXY_HEALTH_PORT: Final = 10256
CONTROLLER_MANAGER_PORT: Final = 10257
SCHEDULER_PORT: Final = 10259

GPU_RESOURCE: Final = "nvidia.com/gpu"
