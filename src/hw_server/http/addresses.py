"""The client's address (of the peer, or as trusted proxies report it), and the host names this server is called by."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.types import Scope

from hw_server.errors import HostNotAllowed

Networks = tuple[IPv4Network | IPv6Network, ...]


def header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def client_address(scope: Scope, trusted: Networks) -> str | None:
    """The nearest address that is not a trusted proxy; `X-Forwarded-For` of other peers is ignored."""
    peer: str | None = unmapped(scope["client"][0]) if scope.get("client") else None
    if not trusted or peer is None or not within(peer, trusted):
        return peer
    forwarded = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for")
    for part in reversed(forwarded.decode("latin-1").split(",")):
        address = unmapped(part.strip())
        if not _is_address(address):
            return peer
        if not within(address, trusted):
            return address
        peer = address
    return peer


def unmapped(address: str) -> str:
    """The IPv4 address of a peer that a dual-stack socket reports as `::ffff:192.0.2.1` (RFC 4291, section 2.5.5.2)."""
    if not address.lower().startswith("::ffff:"):
        return address
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def within(address: str, networks: Networks) -> bool:
    """Whether one of the networks contains the address; False for text that is no address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed.version == network.version and parsed in network for network in networks)


def origin(address: str) -> str:
    """The origin of a URL, `https://api.example.org`, as browsers send it."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


class Hosts:
    """The host names of `http.allowed_hosts`: exact, or `*.example.org` for all below one. An empty list allows any."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._any = not allowed
        self._exact = frozenset(host.lower() for host in allowed if not host.startswith("*."))
        self._suffixes = tuple(host[1:].lower() for host in allowed if host.startswith("*."))

    def check(self, scope: Scope) -> None:
        """Raises `HostNotAllowed` for any other name in the `Host` header."""
        if self._any:
            return
        host = (header(scope, b"host") or b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name not in self._exact and not name.endswith(self._suffixes):
            raise HostNotAllowed("the server does not answer for this host name")
