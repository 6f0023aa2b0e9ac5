"""Which addresses of media may be fetched: pure rules, which `fetching` holds every request to.

They keep a user of the port from reaching, through this server, what only the server can reach: the cloud's metadata
service, the cluster's own Services, the pod's other ports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_api.resource import MEDIA_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from yarl import URL

    IPAddress = IPv4Address | IPv6Address

_PORTS: Final = {"http": 80, "https": 443}
_WILDCARD: Final = "*."
_ENTRY: Final = re.compile(MEDIA_DOMAIN)
_UNICAST: Final = IPv6Network("2000::/3")
"""All that has been given out as global unicast addresses of IPv6 (RFC 4291)."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""IPv4 addresses as name servers of networks without IPv4 tell them (RFC 6052)."""
_IPV4_BITS: Final = 32
_WIRE_SERVER: Final = IPv4Address("168.63.129.16")
"""Azure's service for the machine that asks: the one such address that does not look private."""


def is_public(address: IPAddress) -> bool:
    """Say whether an address belongs to the Internet at large, and to nothing near this machine."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address != _WIRE_SERVER
    inner = address.ipv4_mapped
    if address in _NAT64:
        inner = IPv4Address(int(address) % 2**_IPV4_BITS)
    if inner is not None:
        return is_public(inner)
    return address in _UNICAST and address.is_global and address.sixtofour is None


@dataclass(frozen=True, slots=True)
class Domain:
    """One entry of the list."""

    scheme: str
    host: str
    """Exact, or `*.` and what the host must end with."""
    port: int

    def covers(self, url: URL) -> bool:
        """Say whether an address is of this domain."""
        host = url.raw_host or ""
        suffix = self.host.removeprefix("*")
        same = host == self.host if suffix == self.host else host.endswith(suffix)
        return same and (url.scheme, url.port) == (self.scheme, self.port)


def read_domains(entries: Iterable[str]) -> tuple[Domain, ...]:
    """Read `spec.openai.mediaDomains`.

    Args:
        entries: `[http://]HOST[:PORT]`, HOST exact or `*.` and a domain. HTTPS is meant unless `http://` stands there.

    Raises:
        ProductError: an entry is none.
    """
    return tuple(_read(entry) for entry in entries)


def _read(entry: str) -> Domain:
    if not _ENTRY.fullmatch(entry):
        raise ProductError(
            Reason.INVALID,
            at="--media-domain",
            problem=f"{entry!r} is no host name",
            remedy="write HOST, *.DOMAIN, either with :PORT, and http:// in front where HTTPS is not spoken",
        )
    scheme = "http" if entry.startswith("http://") else "https"
    host, _, port = entry.removeprefix("http://").partition(":")
    return Domain(scheme, host, int(port) if port else _PORTS[scheme])


def check_address(url: URL, domains: Iterable[Domain], *, at: str) -> None:
    """Refuse an address that is not listed.

    Args:
        url: absolute.
        domains: the list.
        at: what to call it in an error, which does not repeat it.

    Raises:
        ProductError: it carries a password, or no entry covers it.
    """
    if url.raw_user is not None or url.raw_password is not None:
        raise refused(at, "holds a user name or a password", "give an address that works without")
    if not any(domain.covers(url) for domain in domains):
        raise refused(
            at,
            "is, or leads to, an address that this server does not fetch from",
            f"{CONTENT}, or have scheme, host and port listed in spec.openai.mediaDomains",
        )


CONTENT: Final = "send the content itself as a data URI"


def refused(at: str, problem: str, remedy: str = CONTENT) -> ProductError:
    """Make the error of a medium that is not fetched."""
    return ProductError(Reason.REQUEST_REFUSED, at=at, problem=problem, remedy=remedy)
