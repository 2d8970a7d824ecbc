"""New connections: which service, which real server, or why none.

Source: Linux net/netfilter/ipvs/ip_vs_core.c (ip_vs_schedule, ip_vs_sched_persist, ip_vs_leave)
and the conn_schedule functions of ip_vs_proto_*.c, by behaviour.
"""

from __future__ import annotations

from typing import Final

from lvskit.core import persistence, states
from lvskit.core.administration import BYPASS
from lvskit.core.connection import Connection, Template
from lvskit.core.lifecycle import Lifecycle
from lvskit.core.packet import Parsed
from lvskit.core.service import RealServer, VirtualService
from lvskit.core.services import FTP, FTP_DATA
from lvskit.errors import ConfigError, PluginError
from lvskit.refusals import Refusal, refuse
from lvskit.settings import Settings
from lvskit.types import NOT_OURS, SCTP, TCP, Drop, Flow, Reason, Verdict

FAULT: Final = Drop(Reason.PLUGIN_FAULT)
_FULL: Final = Drop(Reason.TABLE_FULL)
_DEFENCE: Final = Drop(Reason.DEFENCE)
NO_SERVER: Final = Drop(Reason.NO_SERVER)
MALFORMED: Final = Drop(Reason.MALFORMED)


class Scheduling(Lifecycle):
    """The part of the Director that opens connections."""

    def _schedule(
        self, parsed: Parsed, packet: bytes, now: float, mark: int
    ) -> Connection | Verdict:
        """Return the connection that `packet` opens, or the verdict that it opens none.

        Where `parsed` is related, `packet` is an ICMP error about an answer to that.
        """
        service = self.services.match(parsed, mark)
        if parsed.flags == states.CUT_SHORT:
            return MALFORMED
        if service is None:
            return NOT_OURS
        settings = service.rules.settings
        if not (settings.schedule_icmp if parsed.related else _opens(parsed, settings)):
            return NOT_OURS
        rate = service.rules.drop_rate
        if rate and self.defence.drops_packet(rate):
            self.table.dropped_packets += 1
            return _DEFENCE
        if parsed.sport == FTP_DATA:
            return NOT_OURS
        self.expire(now)  # schedulers see the counts of this moment
        try:
            if service.settings.persistence_s:
                made = self._schedule_persistent(service, parsed, now)
            else:
                made = self._schedule_once(service, parsed, now)
            if made is None:
                return self._leave(service, parsed, packet, now)
        except PluginError as err:
            self._report(err)
            return FAULT
        return made

    def _schedule_once(
        self, service: VirtualService, parsed: Parsed, now: float
    ) -> Connection | Verdict | None:
        """Return the new connection, the verdict that there is no room, or None: no server."""
        if not service.fwmark and parsed.dport != service.port:
            return None  # of FTP's data connections, for which only persistence has a server
        server = self._choose(service, parsed.flow, now)
        if server is None:
            return None
        if not self._make_room(1):
            return _FULL
        return self._open(service, parsed, server, server.port or parsed.dport, now)

    def _schedule_persistent(
        self, service: VirtualService, parsed: Parsed, now: float
    ) -> Connection | Verdict | None:
        """Do the same by the client's template, making one where there is none."""
        flow = persistence.template_flow(service, parsed)
        template = self.table.templates[flow.protocol].get(flow.key)
        own_port = parsed.dport == service.port
        if template is not None and not persistence.usable(template):
            persistence.retire(self.table, template)
            template = None
        if template is None:
            server = self._choose(service, parsed.flow, now)
            if server is None:
                return None
            if not self._make_room(2):
                return _FULL
            named = own_port and service.port != FTP
            template = Template(flow.protocol, flow.key, server, server.port if named else 0)
            template.timeout = float(service.settings.persistence_s)
            self.table.add_template(template)
            server.persistconns += 1
        elif not self._make_room(1):
            return _FULL
        server = template.server
        dport = server.port if own_port and server.port else parsed.dport
        connection = self._open(service, parsed, server, dport, now)
        connection.template = template
        template.children += 1
        template.deadline = now + template.timeout
        self.wheel.schedule(template)
        return connection

    def _choose(self, service: VirtualService, flow: Flow, now: float) -> RealServer | None:
        """Ask the service's scheduler; `PluginError` where it breaks its contract."""
        name = service.settings.scheduler
        if service.tick is not None:
            self._tell_scheduler(service, "tick", now)
        try:
            server = service.scheduler.schedule(flow)
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

    def _leave(
        self, service: VirtualService, parsed: Parsed, packet: bytes, now: float
    ) -> Connection | Verdict:
        """Return what becomes of a packet for which its service has no server."""
        if service.fwmark and service.rules.settings.cache_bypass and not parsed.related:
            route = self._routes(parsed.dst)
            if route is not None and not route.local and self._make_room(1):
                return self._open_bypass(service, parsed, now)
        if service.port == FTP and parsed.dport != FTP:
            return NOT_OURS  # the packet may be for another service of this host
        return NO_SERVER if parsed.related else refuse(packet, Refusal.PORT_UNREACHABLE)

    def _open_bypass(self, service: VirtualService, parsed: Parsed, now: float) -> Connection:
        """Return a connection that takes its packets on to where the client sends them."""
        if service.beside is None:
            service.beside = VirtualService(service.key, service.rules)
            service.beside.attach(RealServer(service.beside, bytes(len(parsed.dst)), 0))
        service.beside.settings = service.settings
        (nobody,) = service.beside.servers
        target = RealServer(service.beside, parsed.dst, 0)
        try:
            self._bind(target, BYPASS)
        except ConfigError as err:
            raise PluginError(str(err), plugin=BYPASS.method) from err
        nobody.transmit = target.transmit
        connection = self._open(service.beside, parsed, nobody, 0, now)
        connection.two_way = True
        return connection


def _opens(parsed: Parsed, settings: Settings) -> bool:
    """Whether a packet is the first of a connection."""
    if parsed.protocol == TCP:
        opening = settings.sloppy_tcp or parsed.flags & states.SYN
        return bool(opening) and not parsed.flags & states.RST
    if parsed.protocol == SCTP:
        opening = settings.sloppy_sctp or parsed.flags == states.INIT_CHUNK
        return bool(opening) and parsed.flags != states.ABORT_CHUNK
    return True


def supersedes(parsed: Parsed, connection: Connection) -> bool:
    """Whether a packet begins a connection, and so ends the one that its ports belonged to."""
    bit = states.SYN if parsed.protocol == TCP else 0
    if not (parsed.flags == states.INIT_CHUNK if parsed.protocol == SCTP else parsed.flags & bit):
        return False
    settings = connection.server.rules.settings
    if settings.expire_nodest_conn and not connection.server.weight:
        return True
    mode = settings.conn_reuse_mode
    if not mode or connection.template is not None:
        return False
    state = connection.state
    if parsed.protocol == SCTP:
        return state == states.SCTP_CLOSED
    if state == states.FIN_WAIT:
        return bool(mode & 2) and not connection.two_way
    return state in (states.TIME_WAIT, states.CLOSE)
