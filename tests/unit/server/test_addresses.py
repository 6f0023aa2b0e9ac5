"""Which addresses of media are fetched: the rules, as tables."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from yarl import URL

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_server.addresses import check_address, is_public, read_domains


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1"),
        *("169.254.169.254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::1", "2002:7f00:1::", "2001::1"),
    ],
)
def test_nothing_near_this_machine_is_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    ("entry", "url", "covered"),
    [
        ("example.org", "https://example.org/a.png?b#c", True),
        ("example.org", "https://EXAMPLE.org:443/", True),
        ("example.org", "http://example.org/", False),
        ("example.org", "https://example.org:8443/", False),
        ("example.org", "https://a.example.org/", False),
        ("example.org", "https://example.org./", False),
        ("example.org", "https://example.org.evil.net/", False),
        ("example.org", "https://evil.net/@example.org/", False),
        ("*.example.org", "https://a.b.example.org/", True),
        ("*.example.org", "https://example.org/", False),
        ("*.example.org", "https://badexample.org/", False),
        ("http://example.org", "http://example.org/", True),
        ("http://example.org", "https://example.org/", False),
        ("http://*.example.org:8080", "http://a.example.org:8080/", True),
        ("http://*.example.org:8080", "http://a.example.org/", False),
        ("example.org:8443", "https://example.org:8443/", True),
        ("xn--bcher-kva.example", "https://bücher.example/", True),
        ("example.org", "ftp://example.org/", False),
        ("example.org", "file:///example.org", False),
        ("example.org", "//example.org/", False),
    ],
)
def test_an_entry_covers_scheme_host_and_port(entry: str, url: str, *, covered: bool) -> None:
    domains = read_domains([entry])
    if covered:
        check_address(URL(url), domains, at="here")
        return
    with pytest.raises(ProductError, match=r"does not fetch from; .*spec\.openai\.mediaDomains") as refused:
        check_address(URL(url), domains, at="here")
    assert (refused.value.failure.reason, refused.value.failure.at) == (Reason.REQUEST_REFUSED, "here")


@pytest.mark.parametrize(
    "url", ["https://me:secret@example.org/", "https://me@example.org/", "https://:x@example.org/"]
)
def test_passwords_are_not_sent_on(url: str) -> None:
    with pytest.raises(ProductError, match="a user name or a password") as refused:
        check_address(URL(url), read_domains(["example.org"]), at="here")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "entry",
    [
        *("", "*", "*.", "https://example.org", "example.org/", "example.org:", "example.org:0", "exam ple.org"),
        *("127.0.0.1", "2130706433", "[::1]", "a.*.org", "Example.org", ".org", "me@example.org", "example.org\n"),
    ],
)
def test_what_is_no_entry_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ProductError, match="is no host name; write HOST") as refused:
        read_domains([entry])
    assert refused.value.failure.at == "--media-domain"
