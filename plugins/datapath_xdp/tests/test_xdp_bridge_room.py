"""When a service has no ring, and what becomes of connections on the edge of that."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.rings import Rings
from xdp_fast import ACK, KEYS, SERVERS, SYN, VIP, Fast

from lvskit import Ring, SchedulerBase, ServerSettings, ServiceSettings
from lvskit.datapath.memory import stack

pytestmark = pytest.mark.usefixtures("bpf")
TCP_KEY, _ = KEYS


@pytest.fixture
def fast() -> Iterator[Callable[..., Fast]]:
    """Makes programs with directors behind them."""
    made: list[Fast] = []

    def make(scheduler: str = "rr", **sizes: int) -> Fast:
        made.append(Fast(scheduler, time.monotonic(), **sizes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def opening(client: int, flags: int = SYN) -> bytes:
    return stack.tcp((bytes([198, 51, 100, 7]), 1000 + client), (VIP, 80), flags, 1, 0)


def open_some(world: Fast, clients: range, flags: int = SYN) -> int:
    """Send a packet of each of these clients; return how many connections the program placed."""
    before = world.placed()
    for client in clients:
        world.take(opening(client, flags), time.monotonic())
    return world.placed() - before


def chosen(world: Fast, client: int) -> bytes:
    """Return the address of a connection's server, as the director knows it."""
    address: bytes = world.director.table.tcp[opening(client)[12:24]].server.address
    return address


def test_a_table_nearly_full_is_the_directors(fast) -> None:
    world = fast(size=64, slots=1024)
    assert open_some(world, range(100)) == 57  # then one in eight is free, and no more
    table = world.director.table
    assert (len(table), table.shed) == (64, 36)
    world.update()
    assert open_some(world, range(100, 110)) == 0
    for connection in list(table.tcp.values())[:-49]:
        world.director._close(connection, "expired")
    world.update()
    assert open_some(world, range(110, 111)) == 0
    world.director._close(next(iter(table.tcp.values())), "expired")
    world.director._close(next(iter(table.tcp.values())), "expired")
    world.update()
    assert open_some(world, range(111, 114)) == 3


def test_a_service_goes_without_while_the_program_lacks_some_of_its_connections(fast) -> None:
    """It would place them again: those of a server that it does not carry have no slots."""
    world = fast()
    now = time.monotonic()
    masq = ServerSettings(method="masq")
    world.director.add_server(TCP_KEY, bytes([10, 0, 0, 14]), None, masq)
    world.update()
    assert open_some(world, range(4)) == 0
    world.director.remove_server(TCP_KEY, bytes([10, 0, 0, 14]), None, now)
    world.update()
    assert open_some(world, range(4, 8)) == 0
    for connection in list(world.director.table):
        world.director._close(connection, "expired")
    world.update()
    assert open_some(world, range(8, 12)) == 4


def test_a_connection_of_a_server_that_has_just_been_removed_is_forgotten(fast) -> None:
    """The program placed it before it knew."""
    world = fast()
    now = time.monotonic()
    world.director.remove_server(TCP_KEY, SERVERS[-1], None, now)
    assert world.program.test_run(bytes(12) + b"\x08\x00" + opening(1)).verdict in (3, 4)
    world.bridge.read()
    assert (len(world.director.table), list(world.slots.known())) == (0, [])
    world.update()
    assert open_some(world, range(1, 4)) == 3
    assert [chosen(world, client) for client in (1, 2, 3)] == [*SERVERS[1::-1], SERVERS[1]]


def test_two_in_one_slot_get_one_each(fast) -> None:
    """Python and the program have taken the same one in the same moment."""
    world = fast(slots=8)
    assert open_some(world, range(1)) == 1
    (first,) = world.director.table
    key = world.slots.key(first.flow.caddr, first.flow.cport.to_bytes(2, "big"), 1)
    world.slots.clear(first.place)  # as if it were not written yet
    for client in range(1, 200):
        assert world.program.test_run(bytes(12) + b"\x08\x00" + opening(client)).verdict in (3, 4)
        world.bridge.read()
        second = world.director.table.tcp[opening(client)[12:24]]
        if world.slots.holds(first.place, key):
            break
        world.director._close(second, "expired")
    else:
        raise AssertionError("the program took another slot each time")
    assert first.place != second.place
    assert open_some(world, range(1), ACK) == 0
    assert first.state_name == "ESTABLISHED"


# --- faults of plugins ---


class Faulty(SchedulerBase):
    """Gives what it is told for a ring."""

    given: Any = None

    def schedule(self, flow: Any) -> Any:
        return self.servers[0]

    def ring(self, service: Any) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


class Stranger:
    def __repr__(self) -> str:
        return "a stranger"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (RuntimeError("no"), "ring raised RuntimeError('no')"),
        (["server"], "ring returned ['server'], which is no ring"),
        (Ring(servers=[Stranger()]), "ring has a stranger in it, which is none of its servers"),
    ],
    ids=["raises", "type", "stranger"],
)
def test_a_faulty_ring_is_reported_once_and_the_director_decides(
    fast, caplog, given: Any, words: str
) -> None:
    world = fast("wlc")
    service = world.director.services.get(TCP_KEY)
    service.scheduler = faulty = Faulty(service.servers)
    faulty.given = given
    for _ in range(3):
        world.director.edit_server(TCP_KEY, SERVERS[0], None, ServerSettings())
        world.update()
    assert open_some(world, range(3)) == 0
    assert len(world.director.table) == 3
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert messages == [f"scheduler 'wlc' of TCP 192.0.2.1:80: {words}"]


def test_a_scheduler_without_the_method_has_no_ring(fast) -> None:
    class Bare:
        def __init__(self, servers: Any) -> None:
            self.servers = servers

        def schedule(self, flow: Any) -> Any:
            return self.servers[0]

    world = fast("rr")
    service = world.director.services.get(TCP_KEY)
    service.scheduler = Bare(service.servers)
    world.update()
    assert open_some(world, range(3)) == 0


def test_places_that_nobody_has_are_the_schedulers(fast) -> None:
    world = fast("wlc")
    service = world.director.services.get(TCP_KEY)
    service.scheduler = partial = Faulty(service.servers)
    partial.given = Ring(servers=[service.servers[1], None])
    world.update()
    assert open_some(world, range(4)) == 2
    assert {chosen(world, client) for client in (0, 2)} == {service.servers[1].address}
    assert {chosen(world, client) for client in (1, 3)} == {service.servers[0].address}


def test_a_service_that_is_made_again_has_a_ring_again(fast) -> None:
    world = fast("rr")
    assert open_some(world, range(2)) == 2
    world.director.remove_service(TCP_KEY, time.monotonic())
    world.update()
    assert open_some(world, range(2, 4)) == 0
    world.director.add_service(TCP_KEY, ServiceSettings(scheduler="rr"))
    for address in SERVERS:
        world.director.add_server(TCP_KEY, address, None, ServerSettings())
    world.update()
    assert open_some(world, range(4, 7)) == 3
    assert [chosen(world, client) for client in (4, 5, 6)] == SERVERS[::-1]


def test_the_rings_of_a_former_daemon_are_taken_away(fast) -> None:
    world = fast("rr")
    assert open_some(world, range(2)) == 2
    table = world.director.table
    successor = Rings(world.engine.maps["rings"], world.services, world.servers, table)
    successor.adopt()
    assert open_some(world, range(2, 4)) == 0
    successor.update([])
    assert open_some(world, range(4, 6)) == 2
    successor.close()


def test_a_ring_is_as_long_as_the_program_has_room_for() -> None:
    assert Ring.LONGEST == layout.RING_CAPACITY
