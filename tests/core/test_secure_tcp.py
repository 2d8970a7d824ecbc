"""The defence secure_tcp: its tables, as documented by what differs, and connections under it."""

from __future__ import annotations

import pytest
from director_world import (
    CLIENT,
    LOCAL_ROUTE,
    ONE,
    TWO,
    VIP,
    WEB,
    World,
    loads,
    target,
)
from kernel_tables import after_tcp

from lvskit import Drop, Reason, Transmit
from lvskit.core import states
from lvskit.testing import packets


@pytest.mark.parametrize("direction", ["input", "output", "input_only"])
@pytest.mark.parametrize("state", states.TCP.names)
def test_every_transition_for_every_flags_byte(direction: str, state: str) -> None:
    names = states.TCP.names
    for tables, secure in ((states.TCP, False), (states.TCP_SECURE, True)):
        found = getattr(tables, direction)[names.index(state)]
        for flags in range(256):
            wanted = after_tcp(direction, state, flags, secure=secure)
            assert names[found[flags]] == wanted, f"flags {flags:#04x}"


def test_only_the_transitions_differ() -> None:
    for part in ("names", "active", "established"):
        assert getattr(states.TCP_SECURE, part) == getattr(states.TCP, part)
    for state in range(11):
        for flags in range(256):
            after = {
                states.TCP_SECURE.input[state][flags],
                states.TCP_SECURE.input_only[state][flags],
            }
            assert states.STEADY_SECURE[state][flags] == (after == {state} and not flags & 0x02)


def life(world: World, steps: str) -> list[tuple[str, float]]:
    """Return state and deadline after each step: a client's flags, or with ``<`` a server's.

    The first step is at second 0, and each takes a second.
    """
    found = []
    for now, step in enumerate(steps.split()):
        if step.startswith("<"):
            answer = packets.tcp(VIP, 80, CLIENT, 1024, step[1:])
            world.director.replied(answer, float(now))
        else:
            world.tcp(step, now=float(now))
        (connection,) = world.connections
        found.append((connection.state_name, connection.deadline))
    return found


def test_a_clients_handshake_waits_in_synack() -> None:
    """It counts as active, and as half-open, for two minutes."""
    world = World()
    service = world.serve(WEB, ONE)
    world.tune(secure_tcp=3)
    assert life(world, "S S") == [("SYNACK", 120.0), ("SYNACK", 121.0)]
    assert loads(service.servers[0]) == (1, 0, 0)
    assert world.connection in world.director.table.half_open
    world.tcp("A", now=2.0)
    assert (world.connection.state_name, world.connection.deadline) == ("ESTABLISHED", 902.0)
    assert not world.director.table.half_open


@pytest.mark.parametrize(
    ("steps", "states_and_deadlines"),
    [
        ("S F", [("SYNACK", 120.0), ("TIME_WAIT", 121.0)]),
        ("S R", [("SYNACK", 120.0), ("CLOSE", 11.0)]),
        ("S A F S", [("SYNACK", 120.0), ("ESTABLISHED", 901.0), ("FIN_WAIT", 122.0),
                     ("SYNACK", 123.0)]),
        ("S A S", [("SYNACK", 120.0), ("ESTABLISHED", 901.0), ("ESTABLISHED", 902.0)]),
    ],
)  # fmt: skip
def test_where_only_the_client_is_seen(
    steps: str, states_and_deadlines: list[tuple[str, float]]
) -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tune(secure_tcp=3)
    assert life(world, steps) == states_and_deadlines


def test_where_the_servers_answers_pass_its_own_packets_must_confirm() -> None:
    """A local server's: a client's ACK alone does not establish the connection."""
    world = World()
    world.routes[ONE] = LOCAL_ROUTE
    world.serve(WEB, ONE)
    world.tune(secure_tcp=3)
    assert life(world, "S <SA A F S <A A") == [
        ("SYNACK", 120.0), ("SYNACK", 121.0), ("SYNACK", 122.0), ("SYNACK", 123.0),
        ("SYNACK", 124.0), ("ESTABLISHED", 905.0), ("ESTABLISHED", 906.0),
    ]  # fmt: skip


def test_where_both_are_seen_from_the_start_a_handshake_begins_in_syn_recv() -> None:
    world = World()
    service = world.serve(WEB, ONE, method="masq")
    world.tune(secure_tcp=3)
    assert isinstance(world.tcp("S"), Transmit)
    assert (world.connection.state_name, world.connection.deadline) == ("SYN_RECV", 60.0)
    world.tcp("A", now=1.0)
    assert (world.connection.state_name, world.connection.deadline) == ("SYN_RECV", 61.0)
    for now, (flags, state, deadline) in enumerate(
        [("SA", "SYNACK", 122.0), ("A", "ESTABLISHED", 903.0)], start=2
    ):
        world.director.replied(packets.tcp(ONE, 80, CLIENT, 1024, flags), float(now))
        assert (world.connection.state_name, world.connection.deadline) == (state, deadline)
    assert loads(service.servers[0]) == (1, 0, 0)


def test_a_full_table_sheds_what_waits_in_synack() -> None:
    world = World(size=2)
    world.serve(WEB, ONE)
    world.tune(secure_tcp=3)
    world.tcps("S", cport=1)
    world.tcps("S", cport=2)
    assert target(world.tcp("S", cport=3)) == ONE
    assert [c.flow.cport for c in world.connections] == [2, 3]
    world.tcps("A", cport=2)
    world.tcps("A", cport=3)
    assert world.tcp("S", cport=4) == Drop(Reason.TABLE_FULL)


def test_one_services_defence_is_not_anothers() -> None:
    world = World()
    world.serve(WEB, ONE)
    other = world.serve(world.director.services.get(WEB).key.of(6, WEB.address, 81), TWO)
    world.tune(other.key, secure_tcp=3)
    world.tcp("S")
    world.receive(packets.tcp(CLIENT, 1024, VIP, 81, "S"))
    assert [c.state_name for c in world.connections] == ["SYN_RECV", "SYNACK"]
    world.tune(other.key, secure_tcp=0)
    world.receive(packets.tcp(CLIENT, 1024, VIP, 81, "S"), 1.0)
    assert [c.state_name for c in world.connections] == ["SYN_RECV", "SYN_RECV"]


def test_it_comes_and_goes_with_the_free_entries() -> None:
    """Mode 1 looks every second whether fewer than `amemthresh` entries are free."""
    world = World(size=4)
    world.serve(WEB, ONE)
    world.tune(secure_tcp=1, amemthresh=3)
    world.tcps("S", cport=1)
    world.tcps("S", cport=2)
    assert [c.state_name for c in world.connections] == ["SYN_RECV"] * 2
    world.director.expire(0.999)
    world.tcp("F", cport=2, now=0.999)  # still by the ordinary table
    world.director.expire(1.0)
    world.tcps("S", cport=3, now=1.0)
    assert [c.state_name for c in world.connections] == ["SYN_RECV", "TIME_WAIT", "SYNACK"]
    world.director.expire(121.0)
    assert world.connections == []
    world.director.expire(122.0)
    world.tcps("S", cport=4, now=122.0)
    assert world.connection.state_name == "SYN_RECV"
