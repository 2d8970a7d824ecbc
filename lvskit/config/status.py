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


class ServerStatus(msgspec.Struct):
    """A real server as it is: what it was told, and its counters."""

    config: Server
    active: int
    inactive: int
    persistent: int
    overloaded: bool
    stats: Stats
    rates: Stats


class ServiceStatus(msgspec.Struct):
    """A virtual service as it is; its servers newest first, the scheduler's order.

    `defences` are those at work.
    """

    config: Service
    servers: list[ServerStatus]
    defences: list[str]
    stats: Stats
    rates: Stats


class Status(msgspec.Struct):
    """The director as it is.

    Attributes:
        version: of ip_vs, whose behaviour this is.
        size: the most entries of the connection table; `entries`: those in it.
        timeouts: as they are, whether given or not.
        settings: those that were given to the director.
        defences: those at work, for services without settings of their own.
        services: in the order of addition.
        stats: what has passed; `rates`: per second.
        shed: half-open connections that gave way to new ones.
        refused: new connections that found no room.
        dropped_entries: connections and templates that drop_entry has given up.
        dropped_packets: those that drop_packet has dropped.
        lost: packets that the datapath has lost, by place.
    """

    version: str
    size: int
    timeouts: Timeouts
    settings: dict[str, int]
    defences: list[str]
    services: list[ServiceStatus]
    stats: Stats
    rates: Stats
    entries: int
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
