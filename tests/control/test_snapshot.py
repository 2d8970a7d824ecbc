"""The connection table out of one director and into another: nobody may notice."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvskit import Connection, Director, Route, checksum, load_plugins
from lvskit.control.api import Control
from lvskit.control.snapshot import (
    ConnectionRecord,
    Part,
    Restorer,
    ServerRecord,
    TemplateRecord,
    export,
)
from lvskit.core.connection import Connection as CoreConnection
from lvskit.core.connection import Template
from lvskit.errors import LvskitError

VIP = "192.168.1.176"
HERE = bytes([192, 168, 1, 175])
SYN, ACK, FIN, RST = 2, 16, 17, 4
PLUGINS = load_plugins(strict=True)
SERVERS = [f"192.168.1.{181 + n}" for n in range(3)]


def service(**fields: Any) -> dict[str, Any]:
    servers = [{"address": a, "upper_threshold": 4, "lower_threshold": 2} for a in SERVERS]
    return {"server": servers, **fields}


SERVICES = [
    service(tcp=f"{VIP}:23", persistent=50, netmask="255.255.255.252"),
    service(tcp=f"{VIP}:80", scheduler="rr"),
    service(udp=f"{VIP}:53", scheduler="lc", persistent=20),
    service(fwmark=7, persistent=30),
]
PORTS = {23: 6, 80: 6, 53: 17, 443: 6}


class Machine:
    """A director, its commands and its clock."""

    def __init__(self, now: float, size: int = 100) -> None:
        self.now = now
        self.opened: list[object] = []
        self.director = Director(
            PLUGINS, lambda address: Route(HERE, 1500), size=size, now=now, report=pytest.fail
        )
        self.control = Control(self.director, PLUGINS, lambda: self.now)

    def configure(self, config: Any) -> None:
        self.control.call("apply", {"config": config})

    def packet(self, client: int, cport: int, port: int, flags: int) -> None:
        mark = 7 if port == 443 else 0
        self.director.receive(packet(client, cport, port, flags), self.now, mark)

    def listing(self) -> list[tuple[object, ...]]:
        """Everything that can be told of the entries whose server is there."""
        table = self.director.table
        half_open = [c for c in table.half_open if c.server.available]
        rows: list[tuple[object, ...]] = []
        for entry in self.director.connections(self.now):
            server = entry.server
            if not server.available:
                continue
            row = (
                entry.flow,
                server.service.name,
                server.name,
                entry.dport,
                entry.state_name,
                entry.deadline - self.now,
            )
            if isinstance(entry, Template):
                rows.append((*row, entry.timeout, entry.children, entry in table.retired))
            else:
                turn = half_open.index(entry) if entry in half_open else None
                rows.append((*row, entry.active, entry.two_way, entry.template is None, turn))
        return rows

    def counts(self) -> list[tuple[object, ...]]:
        return [
            (
                s.name,
                server.name,
                server.activeconns,
                server.inactconns,
                server.persistconns,
                server.overloaded,
            )
            for s in self.director.services
            for server in s.servers
        ]


def packet(client: int, cport: int, port: int, flags: int, *, back: bool = False) -> bytes:
    ends = [(bytes([10, 0, 0, client]), cport), (bytes([192, 168, 1, 176]), port)]
    (src, sport), (dst, dport) = reversed(ends) if back else ends
    protocol = PORTS[port]
    if protocol == 6:
        body = struct.pack("!HHIIBBHHH", sport, dport, 1, 1, 0x50, flags, 1000, 0, 0)
    else:
        body = struct.pack("!HHHH", sport, dport, 8, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + src + dst
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


CLIENTS = st.tuples(
    st.integers(1, 6), st.sampled_from([1024, 1025, 1026]), st.sampled_from(sorted(PORTS))
)
EVENTS = st.one_of(
    st.tuples(st.just("packet"), CLIENTS, st.sampled_from([SYN, ACK, FIN, RST])),
    st.tuples(st.just("packet"), CLIENTS, st.just(SYN)),
    st.tuples(st.just("reply"), CLIENTS, st.sampled_from([SYN | ACK, ACK, FIN])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 7.25, 30.0, 61.0])),
    st.tuples(st.just("delete"), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("quiesce"), st.integers(0, 3), st.integers(0, 2)),
)


def do(machine: Machine, event: tuple[Any, ...]) -> None:
    what, *facts = event
    if what == "wait":
        machine.now += facts[0]
    elif what == "packet":
        machine.packet(*facts[0], facts[1])
    elif what == "reply":
        machine.director.replied(packet(*facts[0], facts[1], back=True), machine.now)
    else:
        number, server = facts
        named = {k: v for k, v in SERVICES[number].items() if k != "server"}
        fields = SERVICES[number]["server"][server] | {"weight": 0 if what == "quiesce" else 1}
        method = {"delete": "delete_server", "add": "add_server", "quiesce": "edit_server"}[what]
        try:
            machine.control.call(method, {"service": named, "server": fields})
        except LvskitError:
            pass  # it is there already, or is not


@settings(max_examples=150)
@given(
    before=st.lists(EVENTS, min_size=10, max_size=80),
    after=st.lists(
        st.one_of(
            st.tuples(st.just("old"), st.integers(0, 50), st.sampled_from([ACK, FIN, RST])),
            st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 20.0, 59.5, 120.0])),
        ),
        max_size=12,
    ),
    size=st.sampled_from([7, 100]),
    pieces=st.sampled_from([1, 3, 1000]),
)
def test_a_new_director_goes_on_as_the_old_one(
    before: list[Any], after: list[Any], size: int, pieces: int
) -> None:
    old = Machine(100.0, size)
    old.configure({"service": SERVICES})
    for event in before:
        do(old, event)
    parts = list(export(old.director, old.now, pieces))

    new = Machine(5000.25, size)
    new.configure(old.control.call("config"))
    restorer = Restorer(new.director, new.now, new.now)
    for part in parts:
        restorer.add(part)
    restorer.finish()

    assert new.listing() == old.listing()
    assert new.counts() == old.counts()
    for event in after:
        if event[0] == "wait":
            old.now += event[1]
            new.now += event[1]
        else:
            _, number, flags = event
            there = [e for e in new.director.table if isinstance(e, CoreConnection)]
            if there:
                flow = there[number % len(there)].flow
                for machine in (old, new):
                    machine.packet(flow.caddr[3], flow.cport, flow.vport, flags)
        assert new.listing() == old.listing()
        assert new.counts() == old.counts()


def two_machines() -> tuple[Machine, Machine]:
    machines = Machine(0.0), Machine(0.0)
    for machine in machines:
        machine.configure({"service": SERVICES})
    return machines


def restored(machine: Machine, parts: list[Part], start: float = 0.0) -> Machine:
    restorer = Restorer(machine.director, start, machine.now)
    for part in parts:
        restorer.add(part)
    restorer.finish()
    return machine


def test_the_time_in_between_counts() -> None:
    old, new = two_machines()
    old.packet(1, 1024, 80, SYN)  # ends after 60 s
    parts = list(export(old.director, 0.0))
    new.now = 45.0
    assert [row[5] for row in restored(new, parts).listing()] == [15.0]
    late = Machine(60.0)
    late.configure({"service": SERVICES})
    assert restored(late, parts).listing() == []


def test_a_template_whose_time_is_over_outlives_its_connections() -> None:
    old, new = two_machines()
    old.packet(1, 1024, 23, SYN)
    old.packet(1, 1024, 23, ACK)  # the connection for 900 s, the template for 50
    new.now = 100.0
    connection, template = restored(new, list(export(old.director, 0.0))).listing()
    assert connection[5] == 800.0
    assert 0 < template[5] <= 60  # type: ignore[operator]


def test_entries_of_servers_that_are_gone_are_left_out() -> None:
    old, new = two_machines()
    for client in range(1, 4):
        old.packet(client, 1024, 80, SYN)
    for address in SERVERS[1:]:
        params = {"service": {"tcp": f"{VIP}:80"}, "server": {"address": address}}
        new.control.call("delete_server", params)
    assert [row[2] for row in restored(new, list(export(old.director, 0.0))).listing()] == [
        f"{SERVERS[0]}:80"
    ]


def test_a_smaller_table_takes_what_fits() -> None:
    old, _ = two_machines()
    for client in range(1, 6):
        old.packet(client, 1024, 80, SYN)
    new = Machine(0.0, size=3)
    new.configure({"service": SERVICES})
    assert len(restored(new, list(export(old.director, 0.0))).director.table) == 3


def test_what_ends_between_two_parts_is_left_out() -> None:
    old, new = two_machines()
    for client in range(1, 4):
        old.packet(client, 1024, 80, SYN)
    parts = []
    for part in export(old.director, 0.0, size=1):
        parts.append(part)
        old.director.expire(60.0)
    assert len(restored(new, parts).listing()) == 1


def test_a_server_with_a_higher_threshold_is_no_longer_overloaded() -> None:
    old, new = two_machines()
    for client in range(1, 13):
        old.packet(client, 1024, 80, SYN)
    overloaded = {row[1] for row in old.counts() if row[5]}
    assert len(overloaded) == 3
    server = {"address": SERVERS[0], "upper_threshold": 9}
    new.control.call("edit_server", {"service": {"tcp": f"{VIP}:80"}, "server": server})
    counts = restored(new, list(export(old.director, 0.0))).counts()
    assert {row[1] for row in counts if row[5]} == overloaded - {f"{SERVERS[0]}:80"}


def test_observers_hear_of_restored_connections() -> None:
    heard: list[Connection] = []

    class Observer:
        def opened(self, connection: Connection) -> None:
            heard.append(connection)

    class Observed:
        """The installed plugins, with an observer besides."""

        def __getattr__(self, name: str) -> Any:
            return getattr(PLUGINS, name)

        def observers(self, service: object) -> list[Any]:
            return [Observer()]

    old, _ = two_machines()
    old.packet(1, 1024, 80, SYN)
    observed: Any = Observed()
    director = Director(observed, lambda address: Route(HERE, 1500))
    control = Control(director, PLUGINS, lambda: 0.0)
    control.call("apply", {"config": {"service": SERVICES}})
    restorer = Restorer(director, 0.0, 0.0)
    for part in export(old.director, 0.0):
        restorer.add(part)
    restorer.finish()
    assert [c.state_name for c in heard] == ["SYN_RECV"]


KEY = bytes(8) + bytes([4, 0, 0, 80])
SERVER = ServerRecord(
    (6, bytes([192, 168, 1, 176]), 80, 0, 4), bytes([192, 168, 1, 181]), 80, 4, False
)
CONNECTION = ConnectionRecord(0, 6, KEY, 80, 10.0, -1, 1, False, 0)
TEMPLATE = TemplateRecord(0, 6, KEY, 80, 10.0, 50.0, True, False)


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        *[
            (CONNECTION, wrong)
            for wrong in (
                {"server": 1},
                {"server": -1},
                {"protocol": 47},
                {"key": b"short"},
                {"dport": 65536},
                {"dport": -1},
                {"remaining_s": float("nan")},
                {"remaining_s": float("inf")},
                {"remaining_s": -1.0},
                {"state": 11},
                {"state": -1},
                {"protocol": 17},  # which has no state 1
            )
        ],
        *[
            (TEMPLATE, wrong)
            for wrong in (
                {"server": 3},
                {"protocol": 1},
                {"timeout_s": float("nan")},
                {"timeout_s": -1.0},
                {"remaining_s": float("nan")},
            )
        ],
    ],
)
def test_records_that_cannot_be_are_left_out(
    record: ConnectionRecord | TemplateRecord, wrong: dict[str, Any]
) -> None:
    good, _ = two_machines()

    def part(entry: Any) -> Part:
        if isinstance(entry, TemplateRecord):
            return Part(servers=[SERVER], templates=[entry])
        return Part(servers=[SERVER], connections=[entry])

    assert len(restored(good, [part(record)]).listing()) == 1
    bad, _ = two_machines()
    before = bad.counts()
    assert restored(bad, [part(record._replace(**wrong))]).listing() == []
    assert bad.counts() == before


def test_the_same_twice_is_once() -> None:
    old, new = two_machines()
    old.packet(1, 1024, 23, SYN)
    parts = list(export(old.director, 0.0))
    once = restored(new, parts).listing(), new.counts()
    assert (restored(new, parts).listing(), new.counts()) == once


def test_half_open_connections_keep_their_turn_to_be_shed() -> None:
    old, new = two_machines()
    for client, flags in ((1, SYN), (1, FIN), (5, SYN), (1, SYN)):
        old.packet(client, 1024, 23, flags)
    turns = [c.flow.caddr[3] for c in old.director.table.half_open]
    assert turns == [5, 1]
    assert [c.flow.caddr[3] for c in old.director.table.tcp.values()] == [1, 5]
    restored(new, list(export(old.director, 0.0)))
    assert [c.flow.caddr[3] for c in new.director.table.half_open] == turns


def test_a_retired_template_stays_retired() -> None:
    old, new = two_machines()
    old.packet(1, 1024, 23, SYN)
    (template,) = [e for e in old.director.table if isinstance(e, Template)]
    named = {"service": {"tcp": f"{VIP}:23"}, "server": {"address": template.server.name}}
    old.control.call("delete_server", named)
    old.packet(1, 1025, 23, SYN)  # the template's server is gone, so the client gets another
    old.control.call("add_server", named)
    listing = old.listing()
    assert [row[-1] for row in listing[-2:]] == [False, True]
    assert restored(new, list(export(old.director, 0.0))).listing() == listing
