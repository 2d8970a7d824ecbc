"""``-L`` and ``-S``: asks the director what there is, and prints it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from lvskit.cli.ipvsadm.listing import Listing, connection_lines
from lvskit.cli.ipvsadm.order import sorted_by_address, sorted_by_key
from lvskit.config.ipvsadm.labels import Labels
from lvskit.config.ipvsadm.request import Request, Stop
from lvskit.config.ipvsadm.rules import Rules
from lvskit.config.ipvsadm_lines import to_lines
from lvskit.config.model import Config, Service
from lvskit.config.status import ServerStatus, ServiceStatus, Status

if TYPE_CHECKING:
    from lvskit.cli.ipvsadm.run import Session

Arranged = list[tuple[ServiceStatus, list[ServerStatus]]]


def show(session: Session, request: Request) -> None:
    """Print what ``-L`` and its options ask for."""
    given = request.given
    if "connection" in given:
        _show_connections(session, request)
    elif "timeout" in given:
        timeouts = session.call("status")["timeouts"]
        if "json" in given:
            _print_json(session, timeouts)
        else:
            tcp, tcp_fin, udp = (timeouts[name] for name in ("tcp", "tcp_fin", "udp"))
            session.print(f"Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}")
    elif "daemon" in given:
        if "json" in given:
            _print_json(session, [])  # no synchronization daemon can have been started
    else:
        _show_services(session, request)


def save(session: Session, request: Request) -> None:
    """Print what ``-S`` and its options ask for."""
    if "json" in request.given:
        _print_json(session, session.call("config"))
    elif "lossless" in request.given:
        session.print(*to_lines(msgspec.convert(session.call("config"), Config)))
    else:
        rules = Rules(_labels(session, request))
        for service, servers in _arrange(_status(session).services, in_order=True):
            configs = [server.config for server in servers]
            session.print(*rules.lines(service.config, configs))


def find(session: Session, request: Request) -> ServiceStatus | None:
    """Return the service that `request` names, if there is one."""
    return _find(_status(session), request)


def _show_connections(session: Session, request: Request) -> None:
    connections = session.call("connections")
    if "json" in request.given:
        _print_json(session, connections)
        return
    engines = "persistent-conn" in request.given
    session.print(*connection_lines(connections, _labels(session, request), engines=engines))


def _show_services(session: Session, request: Request) -> None:
    status = _status(session)
    in_order = "nosort" not in request.given
    listing = Listing(_labels(session, request), request.given)
    if "service-address" in request.given:
        found = _find(status, request)
        if found is None:
            raise Stop(1, "No such service")
        arranged = _arrange([found], in_order=in_order)
        shown: object = _rearranged(arranged)[0]
        heading = []
    else:
        arranged = _arrange(status.services, in_order=in_order)
        shown = msgspec.structs.replace(status, services=_rearranged(arranged))
        heading = [f"IP Virtual Server version {status.version} (size={status.size})"]
    if "json" in request.given:
        _print_json(session, msgspec.to_builtins(shown))
        return
    session.print(*heading, *listing.titles())
    for service, servers in arranged:
        session.print(*listing.lines(service, servers))


def _find(status: Status, request: Request) -> ServiceStatus | None:
    key = msgspec.convert(request.name_params(), Service).key()
    return next((service for service in status.services if service.config.key() == key), None)


def _rearranged(arranged: Arranged) -> list[ServiceStatus]:
    return [msgspec.structs.replace(service, servers=servers) for service, servers in arranged]


def _arrange(services: list[ServiceStatus], *, in_order: bool) -> Arranged:
    """Return services and their servers in the order of listings, or as the director has them."""
    if not in_order:
        return [(service, service.servers) for service in services]
    arranged = []
    for service in sorted_by_key(services, lambda service: service.config.key()):
        servers = sorted_by_address(service.servers, lambda s: s.config, service.config)
        arranged.append((service, servers))
    return arranged


def _status(session: Session) -> Status:
    return msgspec.convert(session.call("status"), Status)


def _labels(session: Session, request: Request) -> Labels:
    return Labels(None if "numeric" in request.given else session.names)


def _print_json(session: Session, value: object) -> None:
    session.print(json.dumps(value, indent=2))
