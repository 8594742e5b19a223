"""Which network addresses the server may connect to for a client's URL."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IPv6 addresses that stand for an IPv4 address, which a router or the system translates: IPv4-compatible, NAT64 and 6to4. Python
# calls some of them global, and which IPv4 address is reached depends on the network.
TRANSLATED = tuple(ipaddress.IPv6Network(text) for text in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16"))


def may_connect(address: str, networks: Sequence[Network] = ()) -> bool:
    """Return whether an address is public, or in one of the networks that the server was started with.

    Private, loopback, link-local, shared (CGNAT), multicast and reserved addresses are not public.

    Args:
        address: a numeric address, as the resolver returns it; it may have a scope (``fe80::1%eth0``).
        networks: networks that are allowed in addition to public addresses.
    """
    numeric: Address = ipaddress.ip_address(address)
    mapped = getattr(numeric, "ipv4_mapped", None)
    numeric = mapped if mapped is not None else numeric
    if any(numeric in network for network in networks if network.version == numeric.version):
        return True
    if isinstance(numeric, ipaddress.IPv6Address) and (numeric.is_site_local or any(numeric in net for net in TRANSLATED)):
        return False
    return numeric.is_global and not (numeric.is_multicast or numeric.is_reserved or numeric.is_unspecified)
