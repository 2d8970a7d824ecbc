"""The quick way to open a connection does what the long way does."""

from __future__ import annotations

from typing import Any

from director_world import LOCAL_ROUTE, ONE, TWO, VIP, WEB, World, address
from hypothesis import given
from hypothesis import strategies as st

from lvskit import TCP, UDP, Reason, ServerSettings, ServiceKey, Transmit
from lvskit.testing import packets

CLIENT = "10.0.0.7"
SETTINGS: list[dict[str, int]] = [
    {}, {"drop_packet": 3, "am_droprate": 2}, {"secure_tcp": 3}, {"conn_reuse_mode": 0},
    {"expire_nodest_conn": 1}, {"timeout_synrecv": 1},
]  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["S", "S", "S", "SA", "SF", "SR", "A", "F", "R"]),
        st.sampled_from([20, 1024, 1025, 1026, 1027, 1028]),
        st.sampled_from([0.0, 0.5, 2.0, 61.0]),
        st.sampled_from([80, 80, 80, 81]),
    ),
    max_size=25,
)


def made(scheduler: str, settings: dict[str, int], local: bool, **service: Any) -> World:
    world = World(size=4)
    if local:
        world.routes[TWO] = LOCAL_ROUTE
    world.serve(WEB, ONE, TWO, scheduler=scheduler, **service)
    world.serve(ServiceKey.of(UDP, address(VIP), 80), ONE)
    world.tune(**settings)
    return world


def seen(world: World) -> Any:
    """Return all that may be read of a director."""
    director = world.director
    servers = [
        (s.activeconns, s.inactconns, s.overloaded, s.counters)
        for service in director.services
        for s in service.servers
    ]
    table = director.table
    entries = [(c.flow, c.state_name, c.deadline, c.server.address) for c in table]
    half_open = [c.flow for c in table.half_open]
    return servers, entries, half_open, table.shed, table.refused, table.dropped_packets


@given(
    STEPS,
    st.sampled_from(["rr", "wlc"]),
    st.sampled_from(SETTINGS),
    st.booleans(),
    st.sampled_from([{}, {"persistence_s": 60}]),
    st.sampled_from([0, 2]),
    st.integers(0, 25),
)
def test_the_quick_way_and_the_long_one(
    steps: Any, scheduler: str, settings: Any, local: bool, service: Any, upper: int, quiesced: int
) -> None:
    quick, long = (made(scheduler, settings, local, **service) for _ in range(2))
    long.director.begin = (  # type: ignore[method-assign]
        lambda service, packet, now: long.director._receive_any(packet, now, 0)
    )
    now = 0.0
    for number, (flags, cport, later, dport) in enumerate(steps):
        now += later
        if number == quiesced:
            for world in (quick, long):
                edited = ServerSettings(weight=0 if number % 2 else 1, upper=upper)
                world.director.edit_server(WEB, ONE, None, edited)
        packet = packets.tcp(CLIENT, cport, VIP, dport, flags)
        verdicts = [world.director.receive(packet, now) for world in (quick, long)]
        assert verdicts[0] == verdicts[1]
        assert seen(quick) == seen(long)


def test_what_the_quick_way_leaves_to_the_long_one() -> None:
    """A service's `open` says None where only `receive` can tell."""
    world = World(size=2)
    service = world.serve(WEB, ONE)
    key = packets.tcp(CLIENT, 1, VIP, 80)[12:24]
    connection = world.director.open(service, key, 0.0)
    assert world.connections == [connection]
    assert world.director.open(service, key, 0.0) is None
    world.tcp("S", cport=2)
    assert world.director.open(service, b"\0" + key[1:], 0.0) is None
    kept = world.serve(ServiceKey.of(TCP, address(VIP), 81), ONE, persistence_s=9)
    assert world.director.open(kept, key[:-1] + b"\x51", 100.0) is None


def test_what_comes_of_no_server_and_of_a_plugin_that_fails() -> None:
    class Failing:
        def __init__(self, servers: Any, options: Any = None) -> None: ...

        def schedule(self, flow: Any) -> Any:
            raise RuntimeError("not today")

        def server_added(self, server: Any) -> None: ...

    world = World(schedulers={"failing": Failing})
    service = world.serve(WEB, ONE, scheduler="failing")
    made = world.director.open(service, packets.tcp(CLIENT, 1, VIP, 80)[12:24], 0.0)
    assert made is not None
    assert made.reason is Reason.PLUGIN_FAULT  # type: ignore[union-attr]
    assert [fault.plugin for fault in world.faults] == ["failing"]
    idle = World()
    service = idle.serve(WEB)
    made = idle.director.open(service, packets.tcp(CLIENT, 1, VIP, 80)[12:24], 0.0)
    assert made is not None
    assert made.reason is Reason.NO_SERVER  # type: ignore[union-attr]


def test_the_first_packet_of_a_plain_connection_goes_the_quick_way() -> None:
    world = made("rr", {}, local=False)
    world.director._receive_any = None  # type: ignore[assignment, method-assign]
    verdict = world.director.receive(packets.tcp(CLIENT, 1024, VIP, 80, "S"), 0.0)
    assert isinstance(verdict, Transmit)
    assert len(world.connections) == 1
