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
from lvskit.core.scheduling import MALFORMED, supersedes
from lvskit.types import ICMP, ICMPV6, NOT_OURS, TCP, UDP, Drop, Reason, Verdict

_WHOLE: Final = frozenset({b"\0\0", b"\x40\0"})  # flags and offset: no fragment, with or without DF
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
