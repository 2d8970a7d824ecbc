"""The few questions and orders that host set-up has for the kernel, typed, by netlink."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from lvskit.errors import DatapathError

MAIN_TABLE: Final = 254
NODAD: Final = 0x02  # IFA_F_NODAD: the address is usable at once
FOREVER: Final = 0xFFFFFFFF  # seconds; the kernel's word for no end
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def family_of(address: IPAddress) -> int:
    """Return the address family of an address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@dataclass(frozen=True, slots=True)
class Link:
    """A network device as it is now."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    loopback: bool


@dataclass(frozen=True, slots=True)
class Held:
    """An address that this host holds, and where."""

    address: str
    prefix: int
    index: int
    label: str


class Netlink:
    """A connection to the kernel of the network namespace it is opened in; a context manager.

    Raises:
        DatapathError: the kernel refused; the message says what was being done.
    """

    def __init__(self) -> None:
        # 176 ms: not at the top, so that commands without netlink stay quick.
        from pyroute2 import IPRoute

        self._ipr: Any = IPRoute()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ipr.close()

    @contextmanager
    def _doing(self, what: str) -> Iterator[Any]:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            yield self._ipr
        except NetlinkError as err:
            if err.code == errno.EPERM:
                raise DatapathError(
                    f"not permitted to {what}: this needs CAP_NET_ADMIN; run it as root"
                ) from err
            raise DatapathError(f"cannot {what}: {err.args[-1]}") from err

    # --- devices ---

    def links(self) -> list[Link]:
        """Return all devices."""
        return [
            Link(
                index=message["index"],
                name=message.get_attr("IFLA_IFNAME"),
                up=bool(message["flags"] & 1),  # IFF_UP
                mtu=message.get_attr("IFLA_MTU"),
                mac=message.get_attr("IFLA_ADDRESS") or "",
                loopback=bool(message["flags"] & 8),  # IFF_LOOPBACK
            )
            for message in self._ipr.get_links()
        ]

    def link(self, name: str) -> Link | None:
        """Return the device of this name, if there is one."""
        return next((link for link in self.links() if link.name == name), None)

    def add_link(self, name: str, kind: str, **options: Any) -> None:
        """Make a device of a kind that the kernel knows."""
        with self._doing(f"make the {kind} device {name}") as ipr:
            ipr.link("add", ifname=name, kind=kind, **options)

    def set_link(self, name: str, **options: Any) -> None:
        """Change a device: `state="up"`, `mtu=…`, `master=…`, `net_ns_pid=…`."""
        with self._doing(f"change the device {name}") as ipr:
            index = next(iter(ipr.link_lookup(ifname=name)), None)
            if index is None:
                raise DatapathError(f"no device {name!r}; there are: {self._names()}")
            ipr.link("set", index=index, **options)

    def delete_link(self, name: str) -> None:
        """Remove a device; no error if it is gone already."""
        with self._doing(f"remove the device {name}") as ipr:
            for index in ipr.link_lookup(ifname=name):
                ipr.link("del", index=index)

    def _names(self) -> str:
        return ", ".join(link.name for link in self.links())

    # --- addresses ---

    def held(self, family: int) -> list[Held]:
        """Return all addresses of this host, of one family."""
        return [
            Held(
                address=message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
                prefix=message["prefixlen"],
                index=message["index"],
                label=message.get_attr("IFA_LABEL") or "",
            )
            for message in self._ipr.get_addr(family=family)
        ]

    def holder(self, address: IPAddress) -> tuple[Held, Link] | None:
        """Return where this host holds `address`, if it does."""
        for held in self.held(family_of(address)):
            if ipaddress.ip_address(held.address) == address:
                # A device that has gone since took its addresses along.
                return next(
                    ((held, link) for link in self.links() if link.index == held.index), None
                )
        return None

    def add_address(
        self, address: IPAddress, prefix: int, link: Link, *, label: str | None = None
    ) -> None:
        """Give `link` the address; IPv6 addresses without duplicate address detection.

        A VIP is on several hosts on purpose, and an IPv6 address that waits for detection
        cannot be bound for a second. An IPv6 VIP (a /128) is deprecated from the start: valid,
        but never the source that the host chooses by itself, for its tunnels say.
        """
        options: dict[str, Any] = {"flags": NODAD} if address.version == 6 else {}
        if address.version == 6 and prefix == address.max_prefixlen:
            options |= {"preferred_lft": 0, "valid_lft": FOREVER}
        if label:
            options["label"] = label
        with self._doing(f"add {address}/{prefix} to {link.name}") as ipr:
            ipr.addr("add", index=link.index, address=str(address), prefixlen=prefix, **options)

    def delete_address(self, held: Held) -> None:
        """Take an address away."""
        with self._doing(f"remove {held.address}/{held.prefix}") as ipr:
            ipr.addr("del", index=held.index, address=held.address, prefixlen=held.prefix)

    # --- routes and rules ---

    def routes(self, family: int, table: int = MAIN_TABLE) -> list[Any]:
        """Return the route messages of one table."""
        return list(self._ipr.get_routes(family=family, table=table))

    def link_towards(self, address: IPAddress) -> Link | None:
        """Return the device whose subnet contains `address`, else that of the route to it.

        The loopback device counts for nothing: it is the answer for the host's own addresses.
        """
        links = {link.index: link for link in self.links() if not link.loopback}
        subnets = [
            (held.prefix, links[held.index])
            for held in self.held(family_of(address))
            if held.index in links
            and held.prefix < address.max_prefixlen
            and address in ipaddress.ip_network(f"{held.address}/{held.prefix}", strict=False)
        ]
        if subnets:
            return max(subnets, key=lambda found: found[0])[1]
        for message in self._matching_routes(address):
            link = links.get(message.get_attr("RTA_OIF"))
            if link:
                return link
        return None

    def _matching_routes(self, address: IPAddress) -> list[Any]:
        found = []
        for message in self.routes(family_of(address)):
            start = message.get_attr("RTA_DST") or ("0.0.0.0" if address.version == 4 else "::")
            if address in ipaddress.ip_network(f"{start}/{message['dst_len']}", strict=False):
                found.append(message)
        return sorted(found, key=lambda message: -int(message["dst_len"]))

    def replace_route(self, family: int, **route: Any) -> None:
        """Add a route, or change the one that is there."""
        with self._doing(f"set the route to {route.get('dst', 'default')}") as ipr:
            ipr.route("replace", family=family, **route)

    def flush_table(self, family: int, table: int) -> None:
        """Remove all routes of one table."""
        with self._doing(f"clear the routing table {table}") as ipr:
            ipr.flush_routes(family=family, table=table)

    def rules(self, family: int) -> list[tuple[str | None, int, int]]:
        """Return the routing rules: source address (None if any), table, priority.

        There are always some, except on a kernel without policy routing for the family.
        """
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            messages = list(self._ipr.get_rules(family=family))
        except NetlinkError as err:
            if err.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                raise DatapathError(f"cannot read the routing rules: {err.args[-1]}") from err
            messages = []
        return [
            (
                message.get_attr("FRA_SRC"),
                message.get_attr("FRA_TABLE"),
                message.get_attr("FRA_PRIORITY") or 0,
            )
            for message in messages
            if message["family"] == family
        ]

    def rule(self, verb: str, source: IPAddress, table: int, priority: int) -> None:
        """Add ("add") or remove ("del") the rule that sends `source`'s packets to `table`."""
        with self._doing(f"{verb} the routing rule for {source}") as ipr:
            ipr.rule(
                verb,
                family=family_of(source),
                src=str(source),
                src_len=source.max_prefixlen,
                table=table,
                priority=priority,
            )
