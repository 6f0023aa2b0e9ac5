"""etcd, the API server, the controller manager and the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_cluster import binaries, kubeconfigs
from multimodal_cluster.addresses import (
    API_PORT,
    CONTROLLER_MANAGER_PORT,
    ETCD_PEER_URL,
    ETCD_URL,
    NODE_IP,
    SCHEDULER_PORT,
    SERVICE_RANGE,
)
from multimodal_cluster.api import Api, answers
from multimodal_cluster.daemons import Daemon
from multimodal_cluster.paths import SOURCES

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths

READY_S: Final = 90.0
AUDIT_POLICY: Final = SOURCES / "audit-policy.json"


def etcd(paths: Paths) -> Daemon:
    """Describe etcd."""
    return Daemon(
        "etcd",
        (
            str(binaries.program(binaries.ETCD, "etcd", paths)),
            f"--data-dir={paths.etcd}",
            "--name=multimodal",
            f"--listen-client-urls={ETCD_URL}",
            f"--advertise-client-urls={ETCD_URL}",
            f"--listen-peer-urls={ETCD_PEER_URL}",
            f"--initial-advertise-peer-urls={ETCD_PEER_URL}",
            f"--initial-cluster=multimodal={ETCD_PEER_URL}",
            # What it holds does not outlive a crash of the machine anyway: each `up` after one starts anew.
            "--unsafe-no-fsync",
            "--logger=zap",
            "--log-level=warn",
        ),
        lambda: answers(f"{ETCD_URL}/health"),
        READY_S,
    )


def apiserver(paths: Paths) -> Daemon:
    """Describe the API server: real authentication, authorisation and admission, and an audit log."""
    pki = paths.certificates
    admin = kubeconfigs.write(paths.kubeconfig, "admin", pki)
    return Daemon(
        "kube-apiserver",
        (
            str(binaries.program(binaries.KUBERNETES, "kube-apiserver", paths)),
            f"--etcd-servers={ETCD_URL}",
            f"--bind-address={NODE_IP}",
            f"--advertise-address={NODE_IP}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'kube-apiserver.crt'}",
            f"--tls-private-key-file={pki / 'kube-apiserver.key'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            f"--audit-policy-file={AUDIT_POLICY}",
            f"--audit-log-path={paths.audit_log}",
            "--audit-log-maxsize=256",
            "--audit-log-maxbackup=2",
            "--profiling=false",
        ),
        lambda: Api(admin).says_ok("/readyz"),
        READY_S,
        files=(AUDIT_POLICY, pki / "kube-apiserver.crt"),
    )


def controller_manager(paths: Paths) -> Daemon:
    """Describe the controller manager."""
    pki = paths.certificates
    config = kubeconfigs.write(paths.configs / "kube-controller-manager.kubeconfig", "kube-controller-manager", pki)
    return Daemon(
        "kube-controller-manager",
        (
            str(binaries.program(binaries.KUBERNETES, "kube-controller-manager", paths)),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--secure-port={CONTROLLER_MANAGER_PORT}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            f"--service-account-private-key-file={pki / 'service-accounts.key'}",
            "--use-service-account-credentials=true",
            f"--flex-volume-plugin-dir={paths.kubelet / 'volume-plugins'}",
            # The only one of its kind needs no election; a restart would wait for the old lease.
            "--leader-elect=false",
            # The default of 20 requests a second delays tests that make hundreds of objects.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ),
        lambda: answers(f"https://127.0.0.1:{CONTROLLER_MANAGER_PORT}/healthz"),
        READY_S,
        files=(config,),
    )


def scheduler(paths: Paths) -> Daemon:
    """Describe the scheduler."""
    config = kubeconfigs.write(paths.configs / "kube-scheduler.kubeconfig", "kube-scheduler", paths.certificates)
    settings = kubeconfigs.write_json(
        paths.configs / "kube-scheduler.json",
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(config), "qps": 200, "burst": 400},
            "leaderElection": {"leaderElect": False},
            # One node: waiting long before a second try helps nobody.
            "podMaxBackoffSeconds": 2,
        },
    )
    return Daemon(
        "kube-scheduler",
        (
            str(binaries.program(binaries.KUBERNETES, "kube-scheduler", paths)),
            f"--config={settings}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--secure-port={SCHEDULER_PORT}",
        ),
        lambda: answers(f"https://127.0.0.1:{SCHEDULER_PORT}/healthz"),
        READY_S,
        files=(config, settings),
    )
