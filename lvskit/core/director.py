"""The Director: one packet in, one verdict out; services and servers as told.

`receive` is the pipeline. The packet of a known connection takes the few lines at its top; all
else, malformed packets included, goes down `_receive_any`. Source of the rules: Linux
net/netfilter/ipvs/ip_vs_core.c, by behaviour.
"""

from __future__ import annotations

from typing import Final

from lvskit.core import states
from lvskit.core.connection import Connection
from lvskit.core.packet import parse
from lvskit.core.related import Related
from lvskit.core.scheduling import FAULT, MALFORMED, NO_SERVER, supersedes
from lvskit.core.service import VirtualService
from lvskit.core.services import FTP_DATA
from lvskit.errors import PluginError
from lvskit.refusals import Refusal, refuse
from lvskit.types import ICMP, ICMPV6, NOT_OURS, TCP, UDP, Drop, Flow, Reason, Verdict

_WHOLE: Final = frozenset({b"\0\0", b"\x40\0"})  # flags and offset: no fragment, with or without DF
_OPENING: Final = states.SYN | states.RST
_make: Final = tuple.__new__  # makes a named tuple in a third of the time
_FTP_DATA: Final = FTP_DATA.to_bytes(2, "big")
_FRAGMENT: Final = Drop(Reason.FRAGMENT)
_REMOVED: Final = Drop(Reason.SERVER_REMOVED)


class Director(Related):
    """A Linux Virtual Server director without any I/O: the brain that datapaths carry.

    It has no clock: every method that needs the time is given `now`, monotonic seconds, and `now`
    must never go back. Services and servers are managed by the methods of `Administration`.

    Args:
        registry: where schedulers and forwarding methods are found: `lvskit.load_plugins()`.
        routes: tells the way to a packed address, or None; supplied by the datapath.
        size: the most connections and templates that the table holds.
        now: the time.
        report: called with each `PluginError` when a plugin breaks its contract.
    """

    def receive(self, packet: bytes, now: float, mark: int = 0) -> Verdict:
        """Return what to do with a packet that is addressed to this host.

        Args:
            packet: one IPv4 or IPv6 datagram; nothing in it is trusted.
            now: the time.
            mark: the firewall mark that the packet carries; 0 = none.
        """
        found, flags = None, 0
        try:
            # Bytes 12 to 24 of a plain IPv4 header and the ports are the key; 33 the TCP flags.
            if packet[0] == 0x45:
                if packet[9] == TCP:
                    found, flags = self.table.tcp.get(packet[12:24]), packet[33]
                elif packet[9] == UDP:
                    found = self.table.udp.get(packet[12:24])
        except IndexError:
            pass  # too short for that: malformed, or a fragment
        # What is not quite as it should be, or may open another connection, takes the long way.
        if (
            found is None
            or flags & states.SYN
            or packet[6:8] not in _WHOLE
            or len(packet) != packet[2] << 8 | packet[3]
            or (len(packet) < 40 and (found.protocol == TCP or len(packet) < 28))
            or now >= found.deadline
            or not found.server.available
            or 4 not in self.services.versions
        ):
            if (
                found is None
                and flags & _OPENING == states.SYN
                and not mark
                and packet[6:8] in _WHOLE
                and len(packet) == packet[2] << 8 | packet[3] >= 40
                and packet[20:22] != _FTP_DATA
            ):
                service = self.services.plain.get(packet[16:20] + packet[22:24])
                if service is not None:
                    return self.begin(service, packet, now)
            return self._receive_any(packet, now, mark)
        rules = found.server.rules
        if found.protocol == UDP:
            deadline = now + rules.udp.timeouts[0]
        elif rules.steady[found.state][flags]:
            deadline = now + rules.tcp.timeouts[found.state]
        else:
            self.follow(found, flags, now)
            return self._forward(found, packet)
        if deadline < found.deadline:  # the timeout has been shortened
            self._keep_until(found, deadline)
        else:
            found.deadline = deadline
        return self._forward(found, packet)

    def begin(self, service: VirtualService, packet: bytes, now: float) -> Verdict:
        """Do what `receive` does for the first packet of most connections, in half the time.

        Args:
            service: whose packet it is.
            packet: a whole TCP datagram of IPv4 without options, with SYN and without RST, from
                another port than FTP's for data.
            now: the time.
        """
        made = self.open(service, packet[12:24], now)
        if made is None:
            return self._receive_any(packet, now, 0)
        if isinstance(made, Connection):
            return self._forward(made, packet)
        return refuse(packet, Refusal.PORT_UNREACHABLE) if made is NO_SERVER else made

    def open(self, service: VirtualService, key: bytes, now: float) -> Connection | Drop | None:
        """Open the connection of such a packet, which the datapath forwards and counts itself.

        Args:
            service: whose packet it is.
            key: see `Flow.key`.
            now: the time.

        Returns:
            The connection, why there is none, or None where only `receive` can tell.
        """
        table, rules = self.table, service.rules
        if key in table.tcp or table.count >= table.size:
            return None
        if service.settings.persistence_s or rules.drop_rate:
            return None
        if now != self.expired or now >= self.wheel.soonest:
            self.expire(now)  # schedulers see the counts of this moment
        flow = _make(Flow, (TCP, key[:4], key[8] << 8 | key[9], service.address, service.port))
        try:
            server = self._choose(service, flow, now)
        except PluginError as err:
            self._report(err)
            return FAULT
        if server is None:
            return NO_SERVER
        connection = Connection(TCP, key, server, server.port or service.port)
        connection.state, timeout = rules.begun[connection.two_way]
        connection.deadline = now + timeout
        server.counters.conns += 1
        server.activeconns += 1
        if server.settings.upper:
            server.take()
        table.add(connection)
        table.half_open[connection] = None
        if service.load_changed is not None:
            self._load_changed(server)
        if service.opened:
            self._tell(service.opened, connection)
        self.wheel.schedule(connection)
        return connection

    def _receive_any(self, packet: bytes, now: float, mark: int) -> Verdict:
        """Do the same for any packet at all."""
        parsed = parse(packet)
        if parsed is None:
            return MALFORMED
        if parsed.version not in self.services.versions:
            return NOT_OURS
        if len(packet) > parsed.length:  # the link has padded it
            packet = packet[: parsed.length]
        if parsed.protocol in (ICMP, ICMPV6):
            return self._receive_error(parsed, packet, now, mark)
        table = self.table.connections.get(parsed.protocol)
        if table is None:
            return NOT_OURS
        if parsed.fragment:
            return _FRAGMENT
        connection = old = self._find(table, parsed.key, now)
        if old is not None and supersedes(parsed, old):
            # A new connection of the same client reuses the ports of an old one.
            connection = None
        elif old is not None and not old.server.available:
            if not old.server.rules.settings.expire_nodest_conn:
                return _REMOVED
            connection = None
        if connection is None:
            self._superseded = old
            made = self._schedule(parsed, packet, now, mark)
            if not isinstance(made, Connection):
                if old is not None:
                    self._outlive(old, made, now)
                return made
            connection = made
        self.follow(connection, parsed.flags, now)
        verdict = self._forward(connection, packet)
        if connection.slot is None:  # its first packet: it is not on the wheel yet
            self._settle(connection)
        return verdict

    def replied(self, packet: bytes, now: float) -> Verdict:
        """Return what to do with a packet that leaves this host, or crosses it, to a client.

        The answers of a local real server, and of one whose method rewrites packets, pass the
        director, so they count, and drive the state; the latter's are rewritten back. NOT_OURS =
        send the packet as it is. Source: ip_vs_out, ip_vs_out_icmp, by behaviour.

        Args:
            packet: one datagram; its time to live is already what it shall be.
            now: the time.
        """
        parsed = parse(packet)
        if parsed is None or parsed.fragment or parsed.version not in self.services.versions:
            return NOT_OURS
        verdict = self._answer(parsed, packet[: parsed.length], now)
        return NOT_OURS if verdict is None else verdict
