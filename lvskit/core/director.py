"""The Director: one packet in, one verdict out; services and servers as told.

`receive` is the pipeline. The packet of a known connection takes the few lines at its top; all
else, malformed packets included, goes down `_receive_any`. Source of the rules: Linux
net/netfilter/ipvs/ip_vs_core.c, by behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lvskit.core import persistence, states
from lvskit.core.connection import Connection, Template
from lvskit.core.icmp import Refusal, quoted_reply, refuse
from lvskit.core.lifecycle import Lifecycle
from lvskit.core.packet import Parsed, parse
from lvskit.core.service import RealServer, VirtualService
from lvskit.errors import PluginError
from lvskit.records import Registry
from lvskit.types import (
    ICMP,
    ICMPV6,
    NOT_OURS,
    TCP,
    UDP,
    Counters,
    Drop,
    Reason,
    Reply,
    Route,
    Verdict,
)

DEFAULT_SIZE: Final = 65536
_FTP_DATA: Final = 20
_WHOLE: Final = frozenset({b"\0\0", b"\x40\0"})  # flags and offset: no fragment, with or without DF
_MALFORMED: Final = Drop(Reason.MALFORMED)
_FRAGMENT: Final = Drop(Reason.FRAGMENT)
_REMOVED: Final = Drop(Reason.SERVER_REMOVED)
_FULL: Final = Drop(Reason.TABLE_FULL)
_FAULT: Final = Drop(Reason.PLUGIN_FAULT)


class Director(Lifecycle):
    """A Linux Virtual Server director without any I/O: the brain that datapaths carry.

    It has no clock: every method that needs the time is given `now`, monotonic seconds, and `now`
    must never go back. Services and servers are managed by the methods of `Administration`.

    Args:
        registry: where schedulers and forwarding methods are found: `lvskit.load_plugins()`.
        routes: tells the way to a packed address, or None; supplied by the datapath.
        size: the most connections and templates that the table holds.
        now: the time.
        report: called with each `PluginError` when a plugin breaks its contract.

    Example:
        >>> from lvskit import Director, Route, load_plugins
        >>> here = bytes([192, 168, 1, 175])
        >>> director = Director(load_plugins(), routes=lambda address: Route(here, 1500))
        >>> director.receive(b"junk", now=0.0)
        Drop(reason=<Reason.MALFORMED: 'malformed'>)
    """

    def __init__(
        self,
        registry: Registry,
        routes: Callable[[bytes], Route | None],
        *,
        size: int = DEFAULT_SIZE,
        now: float = 0.0,
        report: Callable[[PluginError], None] = lambda error: None,
    ) -> None:
        super().__init__(registry, routes, size, now, report)

    # --- packets ---

    def receive(self, packet: bytes, now: float, mark: int = 0) -> Verdict:
        """Return what to do with a packet that is addressed to this host.

        Args:
            packet: one IPv4 or IPv6 datagram; nothing in it is trusted.
            now: the time.
            mark: the firewall mark that the packet carries; 0 = none.
        """
        found, timeout = None, 0.0
        try:
            # Bytes 12 to 24 of an IPv4 header without options and of the ports behind it are the
            # flow's key; 33 are the TCP flags. A packet that changes more than the deadline, or
            # that is not quite as it should be, gets no timeout here.
            if packet[0] == 0x45:
                if packet[9] == TCP:
                    found = self.table.tcp.get(packet[12:24])
                    if (
                        found is not None
                        and states.STEADY[found.state][packet[33]]
                        and not found.two_way
                        and len(packet) >= 40
                    ):
                        timeout = self.timeouts.tcp[found.state]
                elif packet[9] == UDP and len(packet) >= 28:
                    found = self.table.udp.get(packet[12:24])
                    timeout = self.timeouts.udp
        except IndexError:
            pass  # too short for that: malformed, or a fragment
        if (
            found is None
            or not timeout
            or packet[6:8] not in _WHOLE
            or len(packet) != packet[2] << 8 | packet[3]
            or now >= found.deadline
            or not found.server.available
            or not self.services.by_key
        ):
            return self._receive_any(packet, now, mark)
        deadline = now + timeout
        if deadline < found.deadline:  # the timeout has been shortened
            self._keep_until(found, deadline)
        else:
            found.deadline = deadline
        return self._forward(found, packet)

    def _receive_any(self, packet: bytes, now: float, mark: int) -> Verdict:
        """Do the same for any packet at all."""
        parsed = parse(packet)
        if parsed is None:
            return _MALFORMED
        if not self.services.by_key:
            return NOT_OURS
        packet = packet[: parsed.length]
        if parsed.protocol in (ICMP, ICMPV6):
            return self._relay_error(parsed, packet, now)
        table = self.table.connections.get(parsed.protocol)
        if table is None:
            return NOT_OURS
        if parsed.fragment:
            return _FRAGMENT
        connection = self._find(table, parsed.flow.key, now)
        if connection is not None and parsed.flags & states.SYN and _is_over(connection):
            # A new connection of the same client reuses the ports of one that has ended.
            self._close(connection, "rescheduled")
            connection = None
        if connection is None:
            made = self._schedule(parsed, packet, now, mark)
            if not isinstance(made, Connection):
                return made
            connection = made
        elif not connection.server.available:
            return _REMOVED
        inward = states.INPUT if connection.two_way else states.INPUT_ONLY
        self._advance(connection, inward, parsed.flags, now)
        verdict = self._forward(connection, packet)
        if connection.slot is None:  # its first packet: it is not on the wheel yet
            self._settle(connection)
        return verdict

    def _relay_error(self, parsed: Parsed, packet: bytes, now: float) -> Verdict:
        """Send an ICMP error about a real server's packet to that server.

        The server answers the client directly, so it is the server that must learn of an MTU or
        an unreachable client; state and deadline stay. Source: ip_vs_in_icmp, by behaviour.
        """
        flow = quoted_reply(packet, parsed)
        if flow is None:
            return NOT_OURS
        connection = self._find(self.table.connections[flow.protocol], flow.key, now)
        return NOT_OURS if connection is None else self._forward(connection, packet, True)

    def _forward(self, connection: Connection, packet: bytes, is_error: bool = False) -> Verdict:
        """Count a packet and hand it to the connection's forwarder."""
        server = connection.server  # an ICMP error may be about a removed one's packet
        counters = server.counters if server.available else Counters()
        counters.inpkts += 1
        counters.inbytes += len(packet)
        try:
            verdict = connection.transmit(connection, packet)
        except Exception as err:  # a stranger's forwarder must not stop the director
            name = connection.server.settings.method
            text = f"forwarder {name!r} of {connection.server.name} raised {err!r}"
            self._report(PluginError(text, plugin=name))
            return _FAULT
        if not isinstance(verdict, Reply):
            return verdict
        if is_error:  # RFC 1122, 3.2.2: no error is ever sent about an error
            return Drop(verdict.reason)
        if self.table.connections[connection.protocol].get(connection.key) is connection:
            counters.outpkts += 1
            counters.outbytes += len(verdict.packet)
        return verdict

    def replied(self, packet: bytes, now: float) -> None:
        """Take note of a packet that this host's own sockets send to a client.

        A local real server's answers pass the director, so they count, and drive the state.
        """
        parsed = parse(packet)
        if parsed is None or parsed.fragment or parsed.protocol not in self.table.connections:
            return
        key = parsed.dst + parsed.src + (parsed.dport << 16 | parsed.sport).to_bytes(4, "big")
        connection = self._find(self.table.connections[parsed.protocol], key, now)
        if connection is None or not self.services.by_key:
            return
        if connection.server.available:
            counters = connection.server.counters
            counters.outpkts += 1
            counters.outbytes += parsed.length
        connection.two_way = True
        if parsed.protocol == UDP and connection.template:
            connection.template.assured = True
        self._advance(connection, states.OUTPUT, parsed.flags, now)

    def _find(self, table: dict[bytes, Connection], key: bytes, now: float) -> Connection | None:
        """Return the connection of `key`, unless its time has come."""
        connection = table.get(key)
        if connection is not None and now >= connection.deadline:
            self.expire(now)
            return table.get(key)
        return connection

    # --- new connections ---

    def _schedule(
        self, parsed: Parsed, packet: bytes, now: float, mark: int
    ) -> Connection | Verdict:
        """Return the connection that `packet` opens, or the verdict that it opens none."""
        if parsed.protocol == TCP and (not parsed.flags & states.SYN or parsed.flags & states.RST):
            return NOT_OURS
        service = self.services.match(
            parsed.protocol, parsed.dst, parsed.dport, mark, parsed.version
        )
        if service is None or parsed.sport == _FTP_DATA:
            return NOT_OURS
        self.expire(now)  # schedulers see the counts of this moment
        try:
            if service.settings.persistence_s:
                return self._schedule_persistent(service, parsed, packet, now)
            server = self._choose(service, parsed)
            if server is None:
                return refuse(packet, Refusal.PORT_UNREACHABLE)
            if not self._make_room(1):
                return _FULL
            return self._open(service, parsed, server, server.port or parsed.dport)
        except PluginError as err:
            self._report(err)
            return _FAULT

    def _schedule_persistent(
        self, service: VirtualService, parsed: Parsed, packet: bytes, now: float
    ) -> Connection | Verdict:
        """Do the same by the client's template, making one where there is none."""
        flow = persistence.template_flow(service, parsed)
        template = self.table.templates[flow.protocol].get(flow.key)
        own_port = parsed.dport == service.port
        if template is not None and not template.server.available:
            persistence.retire(self.table, template)
            template = None
        if template is None:
            server = self._choose(service, parsed)
            if server is None:
                return refuse(packet, Refusal.PORT_UNREACHABLE)
            if not self._make_room(2):
                return _FULL
            named = own_port and service.port != persistence.FTP
            template = Template(flow.protocol, flow.key, server, server.port if named else 0)
            template.timeout = float(service.settings.persistence_s)
            self.table.templates[flow.protocol][flow.key] = template
            server.persistconns += 1
            server.take()
        elif not self._make_room(1):
            return _FULL
        server = template.server
        dport = server.port if own_port and server.port else parsed.dport
        connection = self._open(service, parsed, server, dport)
        connection.template = template
        template.children += 1
        template.deadline = now + template.timeout
        self.wheel.schedule(template)
        return connection

    def _choose(self, service: VirtualService, parsed: Parsed) -> RealServer | None:
        """Ask the service's scheduler; `PluginError` where it breaks its contract."""
        name = service.settings.scheduler
        try:
            server = service.scheduler.schedule(parsed.flow)
        except Exception as err:
            raise PluginError(
                f"scheduler {name!r} of {service.name} raised {err!r}", plugin=name
            ) from err
        if server is None:
            return None
        if (
            not isinstance(server, RealServer)
            or server.service is not service
            or not server.available
        ):
            raise PluginError(
                f"scheduler {name!r} of {service.name} returned {server!r}, which is none of its "
                "servers",
                plugin=name,
            )
        return server


def _is_over(connection: Connection) -> bool:
    """Whether a SYN on this connection opens another one (the kernel's conn_reuse_mode 1)."""
    ended = connection.state in (states.TIME_WAIT, states.CLOSE)
    return ended and connection.template is None
