"""Who is on the other end (the peer, or what trusted proxies say of it), and by which name it called this server."""

from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.types import Scope

from hw_server.errors import HostNotAllowed

Networks = tuple[IPv4Network | IPv6Network, ...]


def header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def client_address(scope: Scope, trusted: Networks) -> str | None:
    """The nearest address that is not a trusted proxy; `X-Forwarded-For` from anybody else is not looked at."""
    peer: str | None = scope["client"][0] if scope.get("client") else None
    if not trusted or peer is None or not _within(peer, trusted):
        return peer
    forwarded = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for")
    for part in reversed(forwarded.decode("latin-1").split(",")):
        address = part.strip()
        if not _is_address(address):
            return peer
        if not _within(address, trusted):
            return address
        peer = address
    return peer


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _within(address: str, networks: Networks) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed.version == network.version and parsed in network for network in networks)


def origin(address: str) -> str:
    """`https://api.example.org` of any address there, as a browser sends it."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


class Hosts:
    """The names this server answers for, `*.example.org` for all below one; none given means any name."""

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
