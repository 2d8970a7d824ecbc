"""The routes of a real server's replies, with the MSS that makes clients' packets fit the tunnel.

A client's packet of 1500 bytes grows in the tunnel by an outer header and fits no longer. How
large the client makes them is said by the real server, in the MSS option of its SYN-ACK, and
Linux takes that from the route back to the client: `advmss`, by default its device's MTU less
the headers (net/ipv4/route.c, ipv4_default_advmss). So the replies of a VIP get routes of their
own, the same as the main table's but with a smaller advmss, and a rule sends only them there.
The MTU of these routes stays: replies do not pass through the tunnel.
"""

from __future__ import annotations

import socket
from typing import Any, Final

from lvskit.errors import ConfigError
from lvskit.hostsetup.changes import Change, Step
from lvskit.hostsetup.netlink import Netlink

TABLE: Final = 1176
"""The routing table, and the priority of its rules; the next free one if it is taken."""

_OVERHEAD: Final[dict[int, int]] = {
    socket.AF_INET: 20,
    socket.AF_INET6: 40,
}  # an outer header of the same family
_HEADERS: Final[dict[int, int]] = {
    socket.AF_INET: 40,
    socket.AF_INET6: 60,
}  # IP and TCP, without options
_SMALLEST: Final[dict[int, int]] = {
    socket.AF_INET: 576,
    socket.AF_INET6: 1280,
}  # RFC 791, RFC 8200 section 5
_UNICAST: Final = 1  # RTN_UNICAST
_ONLINK: Final = 4  # RTNH_F_ONLINK: the gateway needs no route of its own
_KERNEL: Final = 2  # RTPROT_KERNEL
_STATIC: Final = 4  # RTPROT_STATIC


def check_tunnel_mtu(mtu: int | None, families: set[int]) -> None:
    """Refuse an MTU that no tunnel of these families may have.

    Raises:
        ConfigError: it is too small or too large.
    """
    smallest = max((_SMALLEST[family] for family in families), default=576)
    if mtu is not None and not smallest <= mtu <= 65535:
        raise ConfigError(f"tunnel MTU {mtu} is out of range: {smallest} to 65535 bytes")


class Routes(Step, kw_only=True):
    """The main table's routes of one family, again, with an advmss that fits the tunnel.

    Attributes:
        table: where to.
        tunnel_mtu: the largest packet of a client that passes the tunnel; None: whatever the
            route's device takes, less an outer header.
    """

    family: int
    table: int
    tunnel_mtu: int | None = None

    @property
    def key(self) -> Any:
        """The family: there is one such table for each."""
        return "routes", self.family

    def wanted(self, kernel: Netlink) -> list[dict[str, Any]]:
        """Return the routes that shall be in the table, as pyroute2 takes them."""
        mtus = {link.index: link.mtu for link in kernel.links()}
        found = []
        for message in kernel.routes(self.family):
            hops = _hops(message)
            if message["type"] != _UNICAST or not hops or not _for_clients(message):
                continue
            mtu = min(mtus.get(hop["oif"], 1500) for hop in hops)
            route: dict[str, Any] = {
                "dst": _destination(message),
                "table": self.table,
                "proto": _STATIC,
                "scope": message["scope"],
                "metrics": {"advmss": self._advmss(message, mtu)},
            }
            if message.get_attr("RTA_PRIORITY"):
                route["priority"] = message.get_attr("RTA_PRIORITY")
            if len(hops) > 1:
                route["multipath"] = hops
            else:
                hops[0].pop("hops")
                route.update(hops[0])
            found.append(route)
        # Subnets first: in a table of its own a gateway is looked up too.
        return sorted(found, key=lambda route: "gateway" in route or "multipath" in route)

    def _advmss(self, message: Any, mtu: int) -> int:
        metrics = message.get_attr("RTA_METRICS")
        given = metrics.get_attr("RTAX_MTU") if metrics else None
        advmss = metrics.get_attr("RTAX_ADVMSS") if metrics else None
        fits = (self.tunnel_mtu or (given or mtu) - _OVERHEAD[self.family]) - _HEADERS[self.family]
        return min(fits, advmss or fits)

    def present(self, kernel: Netlink) -> bool:
        """Say whether there is any route in the table."""
        return bool(kernel.routes(self.family, self.table))

    def commands(self, kernel: Netlink) -> list[Change]:
        """Tell the routes, one line each."""
        names = {link.index: link.name for link in kernel.links()}
        lines = []
        for route in self.wanted(kernel):
            advmss = route["metrics"]["advmss"]
            hops = [_hop_words(hop, names) for hop in route.get("multipath", [route])]
            way = hops[0] if len(hops) == 1 else " ".join(f"nexthop {hop}" for hop in hops)
            lines.append(
                Change(
                    text=f"tell clients behind {route['dst']} an MSS that fits the tunnel,"
                    f" {advmss}",
                    command=f"{self._ip()} route replace {route['dst']} {way} advmss {advmss}"
                    f" table {self.table}",
                )
            )
        return lines

    def done(self, kernel: Netlink) -> bool:
        """The table holds exactly the wanted routes; never so if there are none to hold."""
        have = sorted(map(repr, map(_summary, kernel.routes(self.family, self.table))))
        want = sorted(repr(_wanted_summary(route)) for route in self.wanted(kernel))
        return bool(want) and have == want

    def apply(self, kernel: Netlink) -> None:
        """Write the routes anew: the main table may have changed since the last time."""
        kernel.flush_table(self.family, self.table)
        for route in self.wanted(kernel):
            kernel.replace_route(self.family, **route)

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """Empty the table."""
        if not self.present(kernel):
            return []
        if not dry_run:
            kernel.flush_table(self.family, self.table)
        command = f"{self._ip()} route flush table {self.table}"
        return [Change(text="remove the replies' own routes", command=command)]

    def _ip(self) -> str:
        return "ip" if self.family == socket.AF_INET else "ip -6"


def has_rules(kernel: Netlink, family: int) -> bool:
    """Say whether the kernel has policy routing for this family.

    Without it (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES) there is but one table, and
    what is meant for another one would land in it.
    """
    return bool(kernel.rules(family))


def no_rules(family: int) -> Change:
    """Tell that the MSS is left as it is."""
    name = "IPv4" if family == socket.AF_INET else "IPv6"
    return Change(
        text=f"(no MSS that fits the tunnel: this kernel has no policy routing for {name}; clients"
        " learn the size from the director's ICMP)"
    )


def free_table(kernel: Netlink, family: int) -> int:
    """Return the first routing table from `TABLE` on that nobody uses."""
    table = TABLE
    ruled = {rule[1] for rule in kernel.rules(family)}
    while table in ruled or kernel.routes(family, table):
        table += 1
    return table


def _for_clients(message: Any) -> bool:
    # A link-local destination is reached from link-local addresses only, never from a VIP; and
    # IPv6 has a route of the kernel's own in the main table for each /128 that the host holds.
    own = message["proto"] == _KERNEL and message["dst_len"] == 128
    return not own and _destination(message) != "fe80::/64"


def _destination(message: Any) -> str:
    address = message.get_attr("RTA_DST")
    return f"{address}/{message['dst_len']}" if address else "default"


def _hops(message: Any) -> list[dict[str, Any]]:
    parts = message.get_attr("RTA_MULTIPATH") or [message]
    hops = []
    for part in parts:
        hop: dict[str, Any] = {"hops": 0}
        if part is message:
            hop["oif"] = message.get_attr("RTA_OIF")
        else:
            hop.update(oif=part["oif"], hops=part["hops"])
        for attribute, name in (("RTA_GATEWAY", "gateway"), ("RTA_VIA", "via")):
            if part.get_attr(attribute):
                hop[name] = part.get_attr(attribute)
        if part["flags"] & _ONLINK:
            hop["flags"] = _ONLINK
        if hop["oif"]:
            hops.append(hop)
    return hops


def _hop_words(hop: dict[str, Any], names: dict[int, str]) -> str:
    words = []
    if "gateway" in hop:
        words.append(f"via {hop['gateway']}")
    if "via" in hop:
        words.append(f"via inet6 {hop['via']['addr']}")
    words.append(f"dev {names.get(hop['oif'], hop['oif'])}")
    if "flags" in hop:
        words.append("onlink")
    return " ".join(words)


def _summary(message: Any) -> tuple[Any, ...]:
    metrics = message.get_attr("RTA_METRICS")
    return (
        _destination(message),
        [(hop["oif"], hop.get("gateway")) for hop in _hops(message)],
        metrics.get_attr("RTAX_ADVMSS") if metrics else None,
    )


def _wanted_summary(route: dict[str, Any]) -> tuple[Any, ...]:
    return (
        route["dst"],
        [(hop["oif"], hop.get("gateway")) for hop in route.get("multipath", [route])],
        route["metrics"]["advmss"],
    )
