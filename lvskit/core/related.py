"""ICMP errors: about a server's answers, about the director's own tunnels, about requests.

Source: Linux net/netfilter/ipvs/ip_vs_core.c (ip_vs_in_icmp, ip_vs_in_icmp_v6, ip_vs_out_icmp), by
behaviour. State and deadline of a connection stay as they are.
"""

from __future__ import annotations

from typing import Any, Final

from lvskit.core.connection import Connection
from lvskit.core.icmp import Error, read_error
from lvskit.core.packet import Parsed, parse_quoted
from lvskit.core.scheduling import FAULT, MALFORMED, Scheduling
from lvskit.core.service import RealServer
from lvskit.errors import PluginError
from lvskit.refusals import Refusal, answer_v4
from lvskit.types import (
    ICMP,
    ICMPV6,
    NOT_OURS,
    UDP,
    Counters,
    Drop,
    Reason,
    Reply,
    Transmit,
    Verdict,
)

TICK_S: Final = 0.004
_LEAST_MTU: Final = 68  # RFC 791
_TUNNELS: Final = frozenset({4, 17, 47})  # IPIP, UDP (GUE), GRE


class Related(Scheduling):
    """The part of the Director that knows what an ICMP error is about."""

    def _receive_error(self, parsed: Parsed, packet: bytes, now: float, mark: int) -> Verdict:
        """Return what to do with an ICMP message that is addressed to this host."""
        error = read_error(packet, parsed)
        if error is None:
            return NOT_OURS
        answered = self._answer(parsed, packet, now)
        if answered is not None:  # it is about a client's packet, not about a server's
            return answered
        if parsed.version == 4 and error.quoted_protocol in _TUNNELS:
            verdict = self._translate(error, now)
            if verdict is not None:
                return verdict
        quoted = parse_quoted(error.quote)
        if quoted is None or quoted.version != parsed.version:
            return NOT_OURS
        # The server answers the client directly, so it is the server that must learn.
        asked = quoted.reversed()
        connection = self._find(self.table.connections[asked.protocol], asked.key, now)
        if connection is not None:
            if connection.reply is not None and not error.intact:
                return MALFORMED
            return self._forward(connection, packet, is_error=True)
        made = self._schedule(asked._replace(related=True), packet, now, mark)
        if not isinstance(made, Connection):
            return made
        verdict = self._forward(made, packet, is_error=True)
        self._settle(made)
        return verdict

    def _translate(self, error: Error, now: float) -> Verdict | None:
        """Answer an error about one of our own tunnel packets; None where it is about none.

        The client is told what the router said, as if about its own packet, with an MTU that leaves
        room for the tunnel. The host's stack learns by the same error, so it is the host's as well.
        """
        inner = self._unwrapped(error.quote)
        if inner is None:
            return None
        sent = parse_quoted(inner)
        if sent is None or sent.version != 4 or not error.intact:
            return NOT_OURS
        connection = self._find(self.table.connections[sent.protocol], sent.key, now)
        if connection is None:
            return NOT_OURS
        rest = error.rest
        if error.kind == Refusal.TOO_BIG.value[0]:
            if not inner[6] & 0x40:
                return NOT_OURS
            # What the host has learnt outranks the router's word, which may be forged.
            server = connection.server
            learnt = server.route if server.counters.inpkts != server.edited_at else None
            mtu = learnt.mtu if learnt is not None else rest & 0xFFFF
            outer = len(error.quote) - len(inner)
            rest = mtu - outer if mtu > _LEAST_MTU + outer else mtu
        told = Reply(answer_v4(inner, error.kind, rest), Reason.TUNNEL_ERROR)
        counters = self._counters(connection)
        counters.outpkts += 1  # the kernel counts the request that it puts back
        counters.outbytes += len(inner)
        self._told(connection, told)
        return told

    def _unwrapped(self, quote: bytes) -> bytes | None:
        """Return what the tunnel packet carries that `quote` begins, if it is one of ours."""
        servers = (server for service in self.services for server in service.servers)
        for server in servers:
            forwarder: Any = server.forwarders.get(server.settings.method)
            if server.address == quote[16:20] and hasattr(forwarder, "unwrap"):
                try:
                    inner: bytes | None = forwarder.unwrap(quote)
                except Exception as err:
                    self._fault(server, f"raised {err!r}")
                    continue
                if inner is not None:
                    return inner
        return None

    def _answer(self, parsed: Parsed, packet: bytes, now: float) -> Verdict | None:
        """Carry an answer to a client, or an error about a request; None where it is neither."""
        asked: Parsed | None = parsed.reversed()
        is_error = parsed.protocol in (ICMP, ICMPV6)
        if is_error:
            error = read_error(packet, parsed)
            asked = None if error is None else parse_quoted(error.quote)
        known = asked and self.table.connections.get(asked.protocol)
        if asked is None or known is None or asked.version != parsed.version:
            return None
        if now >= self.wheel.soonest:
            self.expire(now)
        rewritten = self.table.reverse[asked.protocol].get(asked.reversed().key)
        connection = rewritten[0] if rewritten else known.get(asked.key)
        verdict: object = NOT_OURS
        if connection is None or (connection.reply is not None and not rewritten):
            return None
        if connection.reply is not None:
            try:
                verdict = connection.reply(connection, packet)
            except Exception as err:  # a stranger's forwarder must not stop the director
                return self._fault(connection.server, f"raised {err!r}")
        if not isinstance(verdict, Verdict):
            return self._fault(connection.server, f"returned {verdict!r}, which is no verdict")
        if isinstance(verdict, Drop):
            return verdict
        counters = self._counters(connection)
        counters.outpkts += 1
        counters.outbytes += parsed.length
        if not is_error:
            connection.two_way = True
            if parsed.protocol == UDP and connection.template:
                connection.template.assured = True
            self.follow(connection, parsed.flags, now, inward=False)
        return verdict

    def _counters(self, connection: Connection) -> Counters:
        """Return where a connection's packets count: nowhere once its server is removed."""
        server = connection.server
        return server.counters if server.available else Counters()

    def _forward(self, connection: Connection, packet: bytes, is_error: bool = False) -> Verdict:
        """Count a packet and hand it to the connection's forwarder."""
        server = connection.server
        counters = server.counters if server.available else Counters()
        counters.inpkts += 1
        counters.inbytes += len(packet)
        connection.packets += 1
        try:
            verdict: object = connection.transmit(connection, packet)
        except Exception as err:  # a stranger's forwarder must not stop the director
            return self._fault(connection.server, f"raised {err!r}")
        if type(verdict) is Transmit:
            return verdict
        if not isinstance(verdict, Verdict):
            return self._fault(connection.server, f"returned {verdict!r}, which is no verdict")
        if not isinstance(verdict, Reply):
            return verdict
        if is_error:  # RFC 1122, 3.2.2: no error is ever sent about an error
            return Drop(verdict.reason)
        self._told(connection, verdict)
        return verdict

    def _outlive(self, old: Connection, verdict: Verdict, now: float) -> None:
        """Let a connection wait for its end that was to give way to a new one, which is none.

        Until the kernel's timer fires, what the host answers still finds, and may revive, it.
        """
        self._superseded = None
        if isinstance(verdict, Reply):
            self._told(old, verdict)
        self._keep_until(old, min(old.deadline, now + TICK_S))

    def _told(self, connection: Connection, reply: Reply) -> None:
        """Count the host's own word to a client, which passes the director like an answer."""
        known = self.table.connections[connection.protocol].get(connection.key) is connection
        server = connection.server.address, connection.dport
        if known and (connection.reply is None or connection.flow[3:] == server):
            counters = self._counters(connection)
            counters.outpkts += 1
            counters.outbytes += len(reply.packet)

    def _fault(self, server: RealServer, what: str) -> Verdict:
        """Report what a forwarder did; the packet is lost."""
        name = server.settings.method
        self._report(PluginError(f"forwarder {name!r} of {server.name} {what}", plugin=name))
        return FAULT
