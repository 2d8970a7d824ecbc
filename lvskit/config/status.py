"""Live state, as the control socket tells it.

Its addresses are text, and what it says of services and servers is in the words of configurations.
"""

from __future__ import annotations

import msgspec

from lvskit.config.model import Server, Service, Timeouts


class Stats(msgspec.Struct):
    """What passed (`kind` = totals) or passes per second."""

    conns: int
    inpkts: int
    outpkts: int
    inbytes: int
    outbytes: int


class DatapathStatus(msgspec.Struct):
    """What carries the packets.

    Attributes:
        name: as it was chosen.
        facts: what it is here, such as the interface that it takes packets from; by name.
        figures: what it has done since the start, by name; they only grow.
    """

    name: str
    facts: dict[str, str]
    figures: dict[str, int]


class ServerStatus(msgspec.Struct):
    """A real server as it is: what it was told, and its counters.

    `reachable`: there is a way to it. `counters`: see `Status`.
    """

    config: Server
    active: int
    inactive: int
    persistent: int
    overloaded: bool
    reachable: bool
    stats: Stats
    rates: Stats
    counters: Stats


class ServiceStatus(msgspec.Struct):
    """A virtual service as it is; its servers newest first, the scheduler's order.

    `defences` are those at work. `counters`: see `Status`.
    """

    config: Service
    servers: list[ServerStatus]
    defences: list[str]
    stats: Stats
    rates: Stats
    counters: Stats


class Status(msgspec.Struct):
    """The director as it is.

    Attributes:
        version: of ip_vs, whose behaviour this is.
        started: when the daemon began, and `now`, the time of this reading: monotonic seconds.
        datapath: what carries the packets.
        size: the most entries of the connection table; `entries`: those in it.
        timeouts: as they are, whether given or not.
        settings: those that were given to the director.
        defences: those at work, for services without settings of their own.
        services: in the order of addition.
        stats: what has passed, as listings show it: folded every two seconds, and since it was
            zeroed; `rates`: per second, averaged.
        counters: what has passed since the start, up to this moment; nothing zeroes it.
        half_open: TCP connections that have been opened by one side only.
        shed: half-open connections that gave way to new ones.
        refused: new connections that found no room.
        dropped_entries: connections and templates that drop_entry has given up.
        dropped_packets: those that drop_packet has dropped.
        lost: packets that the datapath has lost, by place.
    """

    version: str
    started: float
    now: float
    datapath: DatapathStatus
    size: int
    timeouts: Timeouts
    settings: dict[str, int]
    defences: list[str]
    services: list[ServiceStatus]
    stats: Stats
    rates: Stats
    counters: Stats
    entries: int
    half_open: int
    shed: int
    refused: int
    dropped_entries: int
    dropped_packets: int
    lost: dict[str, int]


class SettingStatus(msgspec.Struct):
    """A setting as it holds for the director or for one service.

    Attributes:
        name: the kernel's.
        value: as it holds.
        origin: who gave it: `service`, `director`, or `kernel` = nobody, it is the default.
        default: the kernel's value.
        meaning: in a line.
    """

    name: str
    value: int
    origin: str
    default: int
    meaning: str


class ConnectionStatus(msgspec.Struct):
    """One entry of the connection table; ports 0 mark a persistence template."""

    protocol: str
    client: str
    virtual: str
    server: str
    state: str
    expires_s: float
