"""Keys and certificates of one cluster, made anew each time it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multimodal_cluster.addresses import API_SERVICE_IP, DNS_DOMAIN, NODE_IP, NODE_NAME
from multimodal_cluster.commands import run

if TYPE_CHECKING:
    from pathlib import Path

DAYS: Final = "3650"
REMEDY: Final = "install openssl 1.1.1 or later"
ORGANISATION: Final = "system:masters"
KEY: Final = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate speaks for.

    Attributes:
        name: name of its files.
        user: common name: the user in Kubernetes.
        groups: organisations: the user's groups.
        hosts: names and addresses it serves under; none for a client.
    """

    name: str
    user: str
    groups: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


NODE_HOSTS: Final = ("DNS:localhost", f"DNS:{NODE_NAME}", f"IP:{NODE_IP}", "IP:127.0.0.1")
SERVICE_HOSTS: Final = (
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    f"DNS:kubernetes.default.svc.{DNS_DOMAIN}",
    f"IP:{API_SERVICE_IP}",
)
# The names are those that Kubernetes' built-in roles are bound to.
IDENTITIES: Final = (
    Identity("kube-apiserver", "kube-apiserver", hosts=(*NODE_HOSTS, *SERVICE_HOSTS)),
    Identity("kubelet-server", f"system:node:{NODE_NAME}", ("system:nodes",), NODE_HOSTS),
    Identity("kubelet", f"system:node:{NODE_NAME}", ("system:nodes",)),
    Identity("kube-controller-manager", "system:kube-controller-manager"),
    Identity("kube-scheduler", "system:kube-scheduler"),
    Identity("kube-proxy", "system:kube-proxy"),
    Identity("apiserver-kubelet-client", "kube-apiserver-kubelet-client", (ORGANISATION,)),
    Identity("admin", "kubernetes-admin", (ORGANISATION,)),
)


def make_all(folder: Path) -> None:
    """Make the authority, every identity and the key that signs service account tokens; keep what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / "ca.crt").exists():
        _make_authority(folder)
    if not (folder / "service-accounts.key").exists():
        _openssl("genpkey", *KEY, "-out", str(folder / "service-accounts.key"))
        _openssl(
            *("pkey", "-pubout", "-in", str(folder / "service-accounts.key")),
            *("-out", str(folder / "service-accounts.pub")),
        )
    for identity in IDENTITIES:
        if not (folder / f"{identity.name}.crt").exists():
            _make_identity(identity, folder)


def _make_authority(folder: Path) -> None:
    extensions = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
    _openssl(
        *("req", "-x509", *NEW_KEY, "-days", DAYS, "-subj", "/CN=multimodal-cluster"),
        *(word for extension in extensions for word in ("-addext", extension)),
        *("-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.crt")),
    )


def _make_identity(identity: Identity, folder: Path) -> None:
    subject = "".join(f"/O={group}" for group in identity.groups) + f"/CN={identity.user}"
    request = folder / f"{identity.name}.csr"
    extensions = folder / f"{identity.name}.ext"
    usage = "serverAuth" if identity.hosts else "clientAuth"
    names = f"\nsubjectAltName={','.join(identity.hosts)}" if identity.hosts else ""
    extensions.write_text(f"keyUsage=critical,digitalSignature\nextendedKeyUsage={usage}{names}\n")
    _openssl(
        *("req", "-new", *NEW_KEY, "-subj", subject),
        *("-keyout", str(folder / f"{identity.name}.key"), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", DAYS, "-extfile", str(extensions)),
        *("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial"),
        *("-out", str(folder / f"{identity.name}.crt")),
    )
    request.unlink()
    extensions.unlink()


def _openssl(*arguments: str) -> None:
    run("certificates", ["openssl", *arguments], seconds=30, remedy=REMEDY)
