"""Where a webhook may go: a public address, or one in a network that the operator has listed.

A name is resolved once per attempt, every address it has is judged, and the connection goes to exactly such an address:
a second answer of the name server (DNS rebinding) has nobody to fool.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from jobs.settings import Settings
from pruning_core.errors import InputError

Resolver = Callable[[str, int], Iterable[str]]
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 2048
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+\]")
# The registries of special purpose addresses, multicast, and the metadata address of a cloud that is a public one.
_SPECIAL = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
    )
)
# Of IPv6 only what is handed out to the public, without the parts that lead elsewhere (Teredo, 6to4, examples).
_PUBLIC_6 = IPv6Network("2000::/3")
_SPECIAL_6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")


class Refused(InputError):  # noqa: N818
    """The address of a webhook leads where this service does not send anything."""

    slug = "webhook-refused"
    title = "Webhook address refused"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checked URL, taken apart."""

    secure: bool
    host: str
    port: int
    path: str


def target(url: str, settings: Settings) -> Target:
    """Take a URL apart.

    Raises:
        Refused: Scheme, port or form are not allowed.
    """

    def refused(why: str, expected: str) -> Refused:
        return Refused(f"The URL of the webhook cannot be used: {why}.", expected=expected, received=url[:200])

    if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise refused("it is too long, or has characters that no URL has", f"at most {MAX_URL_LENGTH} ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refused("it is malformed", "https://host/path") from None
    schemes = ("https", "http") if settings.webhook_allow_http else ("https",)
    if parts.scheme not in schemes:
        raise refused(f"its scheme is {parts.scheme[:20]!r}", " or ".join(schemes))
    if parts.username is not None or "@" in parts.netloc:
        raise refused("it has credentials", "a URL without user and password")
    if parts.fragment:
        raise refused("it has a fragment", "a URL without '#'")
    authority = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc.rstrip(":")
    if _HOST.fullmatch(authority) is None or parts.hostname is None:
        raise refused("it has no valid host name", "a host name (others than ASCII in their xn-- form) or an address")
    port = port if port is not None else 443 if parts.scheme == "https" else 80
    if port not in (80, 443) and port < 1024:
        raise refused(f"port {port} belongs to another service", "port 80, 443, or one from 1024")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure=parts.scheme == "https", host=parts.hostname, port=port, path=path)


def addresses(wanted: Target, settings: Settings, resolver: Resolver | None = None) -> list[str]:
    """Resolve the host and judge every address.

    Returns:
        The addresses, in the resolver's order.

    Raises:
        Refused: One of them is not public, and not in a network that the operator allows.
        OSError: The name does not resolve.
    """
    found = list(dict.fromkeys((resolver or resolve)(wanted.host, wanted.port)))
    if not found:
        raise OSError(f"no address of {wanted.host}")
    allowed = [ip_network(network) for network in settings.webhook_networks]
    for address in found:
        if not may_reach(address, allowed):
            raise Refused(
                f"The host {wanted.host} leads to an address that is not public.",
                expected="public addresses only",
                received=address,
                advice="The operator may list a private network in PRUNING_WEBHOOK_NETWORKS.",
            )
    return found


def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"no host name: {host[:80]}") from error
    return [str(entry[4][0]) for entry in found]


def may_reach(address: str, allowed: Iterable[Network] = ()) -> bool:
    """Return whether something may be sent to this address.

    >>> [may_reach(a) for a in ("93.184.215.14", "127.0.0.1", "::ffff:10.0.0.1", "fd00::1", "64:ff9b::a00:1")]
    [True, False, False, False, False]
    >>> may_reach("127.0.0.1", [ip_network("127.0.0.0/8")])
    True
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        return False  # of one link only
    ip = _inner(ip)
    if any(ip.version == network.version and ip in network for network in allowed):
        return True
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _SPECIAL)
    return ip in _PUBLIC_6 and not any(ip in network for network in _SPECIAL_6)


def _inner(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
