"""What two readings of the daemon say together: numbers per second.

A reading is a `lvskit.config.status.Status`. Pure; the screen and ``--json`` both show its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from lvskit.config.model import Service
from lvskit.config.status import ServerStatus, ServiceStatus, Stats, Status

QUIESCED: Final = "quiesced"
OVERLOADED: Final = "overloaded"
UNREACHABLE: Final = "unreachable"


class Rates(msgspec.Struct, frozen=True):
    """Connections, packets and bytes per second; `in` is from clients, `out` from servers."""

    conns: float
    inpkts: float
    outpkts: float
    inbytes: float
    outbytes: float


class Count(msgspec.Struct, frozen=True):
    """Something that is counted: in all, and per second, None where there is nothing to compare."""

    total: int
    per_s: float | None


class ServerFigures(msgspec.Struct, frozen=True):
    """A real server.

    Attributes:
        address: `host:port`.
        method: forwarding method.
        weight: 0 = quiesced.
        active, inactive: its connections.
        state: `unreachable`, `overloaded`, `quiesced`, the worst of these, or empty.
        rates: what passes.
    """

    address: str
    method: str
    weight: int
    active: int
    inactive: int
    state: str
    rates: Rates


class ServiceFigures(msgspec.Struct, frozen=True):
    """A virtual service.

    Attributes:
        name: `tcp host:port`, or `fwmark MARK`.
        scheduler: by name.
        weight, active, inactive: the sums over its servers.
        rates: what passes; through servers that have left meanwhile, too.
        servers: newest first, as schedulers see them.
    """

    name: str
    scheduler: str
    weight: int
    active: int
    inactive: int
    rates: Rates
    servers: list[ServerFigures]


class Table(msgspec.Struct, frozen=True):
    """The connection table: see `lvskit.config.status.Status`."""

    size: int
    entries: int
    half_open: int
    shed: Count
    refused: Count
    dropped_entries: Count
    dropped_packets: Count


class Datapath(msgspec.Struct, frozen=True):
    """The datapath.

    Attributes:
        name: as it was chosen; facts: about it, by name.
        figures: what it counts of its work, by name; lost: packets that it has lost, by place.
    """

    name: str
    facts: dict[str, str]
    figures: dict[str, Count]
    lost: dict[str, Count]


class Figures(msgspec.Struct, frozen=True):
    """A director at work.

    Attributes:
        uptime_s: seconds since the daemon's start.
        interval_s: seconds between the readings; None where there is none to compare.
        datapath: what carries the packets.
        table: the connection table.
        defences: those at work.
        rates: what passes through all services.
        services: in the order of addition.
    """

    uptime_s: float
    interval_s: float | None
    datapath: Datapath
    table: Table
    defences: list[str]
    rates: Rates
    services: list[ServiceFigures]


def compare(before: Status | None, now: Status) -> Figures:
    """Return what is, and what passes per second, of the reading `now`.

    Rates are the differences from `before` by the time between the two. What has nothing to be
    compared with (a new server, one whose counters began again, everything in a first reading)
    has the averages that the director estimates, and counts have no rate then.

    Args:
        before: an earlier reading; not used where it is not earlier, or another daemon's.
        now: the reading.
    """
    if before is not None and (before.started != now.started or before.now >= now.now):
        before = None
    seconds = None if before is None else now.now - before.now
    earlier: dict[str, ServiceStatus] = {}
    carried: dict[str, int] = {}
    lost: dict[str, int] = {}
    table: dict[str, int] = {}
    if before is not None:
        earlier = {service_name(service.config): service for service in before.services}
        carried, lost, table = before.datapath.figures, before.lost, _in_table(before)
    carrying = now.datapath
    return Figures(
        uptime_s=now.now - now.started,
        interval_s=seconds,
        datapath=Datapath(
            name=carrying.name,
            facts=carrying.facts,
            figures=_counts(carried, carrying.figures, seconds),
            lost=_counts(lost, now.lost, seconds),
        ),
        table=Table(
            size=now.size,
            entries=now.entries,
            half_open=now.half_open,
            **_counts(table, _in_table(now), seconds),
        ),
        defences=now.defences,
        rates=_rates(before, now, seconds),
        services=[
            _service(earlier.get(service_name(service.config)), service, seconds)
            for service in now.services
        ],
    )


def service_name(config: Service) -> str:
    """Return a service's name: as `lvskit status` has it."""
    (kind,) = config.named
    return f"{kind} {getattr(config, kind)}{' (IPv6)' if config.ipv6 else ''}"


def _service(
    before: ServiceStatus | None, now: ServiceStatus, seconds: float | None
) -> ServiceFigures:
    earlier = {server.config.address: server for server in before.servers} if before else {}
    return ServiceFigures(
        name=service_name(now.config),
        scheduler=now.config.scheduler,
        weight=sum(server.config.weight for server in now.servers),
        active=sum(server.active for server in now.servers),
        inactive=sum(server.inactive for server in now.servers),
        rates=_rates(before, now, seconds),
        servers=[
            _server(earlier.get(server.config.address), server, seconds) for server in now.servers
        ],
    )


def _server(before: ServerStatus | None, now: ServerStatus, seconds: float | None) -> ServerFigures:
    config = now.config
    state = OVERLOADED if now.overloaded else "" if config.weight else QUIESCED
    return ServerFigures(
        address=config.address,
        method=config.method,
        weight=config.weight,
        active=now.active,
        inactive=now.inactive,
        state=state if now.reachable else UNREACHABLE,
        rates=_rates(before, now, seconds),
    )


def _rates(
    before: Status | ServiceStatus | ServerStatus | None,
    now: Status | ServiceStatus | ServerStatus,
    seconds: float | None,
) -> Rates:
    if before is not None and seconds is not None:
        pairs = zip(_values(before.counters), _values(now.counters), strict=True)
        passed = [after - earlier for earlier, after in pairs]
        if min(passed) >= 0:
            return Rates(*(count / seconds for count in passed))
    return Rates(*_values(now.rates))


def _values(stats: Stats) -> tuple[Any, ...]:
    return msgspec.structs.astuple(stats)


_IN_TABLE: Final = ("shed", "refused", "dropped_entries", "dropped_packets")


def _in_table(status: Status) -> dict[str, int]:
    return {name: getattr(status, name) for name in _IN_TABLE}


def _counts(
    before: Mapping[str, int], now: Mapping[str, int], seconds: float | None
) -> dict[str, Count]:
    counts = {}
    for name, total in now.items():
        passed = total - before.get(name, total + 1)
        counts[name] = Count(total, passed / seconds if seconds and passed >= 0 else None)
    return counts
