"""The kubelet and kube-proxy: what makes this machine a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_cluster import binaries, kubeconfigs
from multimodal_cluster.addresses import (
    DNS_DOMAIN,
    DNS_SERVICE_IP,
    KUBELET_HEALTH_PORT,
    KUBELET_PORT,
    NODE_IP,
    NODE_NAME,
    POD_RANGE,
    PROXY_HEALTH_PORT,
)
from multimodal_cluster.api import answers
from multimodal_cluster.daemons import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_cluster.paths import Paths

READY_S: Final = 90.0


def kubelet(paths: Paths) -> Daemon:
    """Describe the kubelet, tuned so that a pod's way from created to running has no needless wait."""
    pki = paths.certificates
    kubeconfig = kubeconfigs.write(paths.configs / "kubelet.kubeconfig", "kubelet", pki)
    resolver = paths.configs / "resolv.conf"
    # Pods reach this machine only; a name server elsewhere would never answer.
    resolver.write_text("options timeout:1\n")
    config = kubeconfigs.write_json(paths.configs / "kubelet.json", _kubelet_config(paths, resolver))
    return Daemon(
        "kubelet",
        (
            str(binaries.program(binaries.KUBERNETES, "kubelet", paths)),
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={paths.kubelet}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_IP}",
        ),
        lambda: answers(f"http://{NODE_IP}:{KUBELET_HEALTH_PORT}/healthz"),
        READY_S,
        files=(config, kubeconfig, pki / "kubelet-server.crt"),
    )


def _kubelet_config(paths: Paths, resolver: Path) -> dict[str, object]:
    pki = paths.certificates
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "port": KUBELET_PORT,
        "healthzBindAddress": NODE_IP,
        "healthzPort": KUBELET_HEALTH_PORT,
        "containerRuntimeEndpoint": f"unix://{paths.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{paths.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        # The root device of sandboxes is often none that the kubelet can measure.
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "podLogsDir": str(paths.pod_logs),
        "volumePluginDir": str(paths.kubelet / "volume-plugins"),
        "resolvConf": str(resolver),
        "clusterDNS": [DNS_SERVICE_IP],
        "clusterDomain": DNS_DOMAIN,
        "tlsCertFile": str(pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        # kube-proxy writes its own rules; the kubelet's would only be left behind.
        "makeIPTablesUtilChains": False,
        "protectKernelDefaults": False,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "maxPods": 250,
    }


def kube_proxy(paths: Paths) -> Daemon:
    """Describe kube-proxy, with one nftables table of its own."""
    kubeconfig = kubeconfigs.write(paths.configs / "kube-proxy.kubeconfig", "kube-proxy", paths.certificates)
    config = kubeconfigs.write_json(
        paths.configs / "kube-proxy.json",
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": NODE_NAME,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "bindAddress": NODE_IP,
            "healthzBindAddress": f"{NODE_IP}:{PROXY_HEALTH_PORT}",
            "metricsBindAddress": "127.0.0.1:10249",
            # The machine's own limits are not ours to change.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            # A Service's new endpoint counts at once: 1 s by default.
            "nftables": {"minSyncPeriod": "100ms"},
        },
    )
    return Daemon(
        "kube-proxy",
        (str(binaries.program(binaries.KUBERNETES, "kube-proxy", paths)), f"--config={config}"),
        lambda: answers(f"http://{NODE_IP}:{PROXY_HEALTH_PORT}/healthz"),
        READY_S,
        files=(config, kubeconfig),
    )
