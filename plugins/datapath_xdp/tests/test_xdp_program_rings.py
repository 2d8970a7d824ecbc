"""New connections that the program places itself, by the ring of a table scheduler."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import (
    NO_SLOT,
    Reason,
    RecordFlag,
    RecordKind,
    RingKind,
    ServiceFlag,
    SlotFlag,
)  # fmt: skip
from lvskit_datapath_xdp.ring import RingMemory
from lvskit_sched_hash.mh import MaglevHashing, MaglevOptions
from lvskit_sched_hash.sh import SourceHashing, SourceOptions
from xdp_kernel import VERDICTS, Kernel, Sent, packed
from xdp_world import (
    CLIENT4,
    ES,
    IN4,
    IN6,
    NARROW,
    PASSED,
    REMOVED,
    SR,
    TCP,
    TCP4,
    TCP6,
    UDP,
    UDP4,
    UDP6,
    UNKNOWN,
    VIP4,
    VIP6,
    ip4,
    ip6,
    populate,
    raw,
    tcp,
    udp,
)  # fmt: skip

from lvskit import Flow, Scheduler
from lvskit.testing.standins import StandInServer

SERVICES = {
    TCP4: (VIP4, 80, TCP),
    UDP4: (VIP4, 53, UDP),
    TCP6: (VIP6, 80, TCP),
    UDP6: (VIP6, 53, UDP),
}
SYN, IN_BOTH = 2, (4, 6)


@pytest.fixture
def world(kernel: Kernel) -> Kernel:
    """Every service has a ring of two servers."""
    populate(kernel)
    for number in SERVICES:
        compile_ring(kernel, number, [IN4, IN6])
    return kernel


def compile_ring(
    kernel: Kernel,
    number: int,
    servers: list[int],
    kind: RingKind = RingKind.TURN,
    *,
    port: bool = False,
    flags: int = 0,
) -> RingMemory:
    """Give a service a ring."""
    kernel.service(number, *SERVICES[number], flags=flags)
    return kernel.place(number, servers, kind, port=port)


def opened(kernel: Kernel, port: int, *, version: int = 4, stream: bool = True) -> Sent:
    """Send the first packet of a connection."""
    segment = tcp("S", sport=port) if stream else udp(sport=port)
    return kernel.send(raw((ip4() if version == 4 else ip6()) / segment))


@pytest.mark.parametrize("version", IN_BOTH)
@pytest.mark.parametrize("stream", [True, False], ids=["tcp", "udp"])
def test_a_new_connection_is_placed_and_told(world: Kernel, version: int, stream: bool) -> None:
    service = {(4, True): TCP4, (4, False): UDP4, (6, True): TCP6, (6, False): UDP6}[
        version, stream
    ]
    came = opened(world, 5000, version=version, stream=stream)
    assert came.verdict == "TX"
    assert came.reasons == {Reason.PLACED: 1}
    (record,) = came.records
    state = SR if stream else 0
    assert record._replace(slot=0, seen=0, bucket=0, other=0, address=b"") == (
        RecordKind.PLACED, version, SYN if stream else 0, state, IN4, TCP if stream else UDP, 0,
        0, 0, 0, 0, 0, 0, b"", (5000).to_bytes(2, "big"), service, b"",
    )  # fmt: skip
    client = (ip4() if version == 4 else ip6()).src
    assert (record.bucket, record.other) == world.buckets_of(client, 5000, service)
    assert record.slot // layout.SLOTS_PER_BUCKET in (record.bucket, record.other)
    entry = world.slot(version, record.slot)
    size = 4 if version == 4 else 16
    assert entry[0] == record.address[-size:]
    assert not any(record.address[:-size])
    flags = SlotFlag.PLACED | SlotFlag.ONE
    assert entry[1:] == (record.port, service, IN4, state, flags, record.seen)
    # The next packet finds it there.
    if stream:
        ack = raw((ip4() if version == 4 else ip6()) / tcp("A", sport=5000))
        moved = world.send(ack)
        assert (moved.verdict, [r.state for r in moved.records]) == ("TX", [ES])
        assert moved.records[0].slot == record.slot
    else:
        again = opened(world, 5000, version=version, stream=stream)
        assert (again.verdict, again.records) == ("TX", [])
    assert world.counted("server", IN4)[0] == world.counted("service", service)[0] == 2


def test_the_cursor_goes_round(world: Kernel) -> None:
    compile_ring(world, TCP4, [IN4, IN4, IN6])
    assert chosen(world, *range(1000, 1007)) == [IN4, IN4, IN6, IN4, IN4, IN6, IN4]


def test_a_ring_changes_at_once_and_known_connections_stay(world: Kernel) -> None:
    ring = compile_ring(world, TCP4, [IN4, IN6])
    first = opened(world, 1000).records[0]
    ring.write([IN6, IN6, IN4], RingKind.TURN, port=False, first=ring.turns)
    assert [opened(world, port).records[0].server for port in (1, 2, 3)] == [IN6, IN6, IN4]
    assert world.send(raw(ip4() / tcp("A", sport=1000))).records[0].server == first.server == IN4
    ring.write([IN4], RingKind.TURN, port=False, first=0)
    ring.write([], RingKind.TURN, port=False, first=0)
    assert opened(world, 4).records[0].kind == RecordKind.SYN


def test_turns_go_on_through_changes_and_python_takes_some(world: Kernel) -> None:
    ring = compile_ring(world, TCP4, [IN4, IN4, IN6])
    assert chosen(world, 1, 2) == [IN4, IN4]
    ring.skip(1)
    assert (ring.turns, chosen(world, 3)) == (3, [IN4])
    ring.skip(-1)
    assert (ring.turns, chosen(world, 4)) == (3, [IN4])
    # Two that nobody has read of yet are the first two of the new places.
    ring.write([IN4, IN4, IN6, IN6], RingKind.TURN, port=False, first=ring.turns - 2)
    assert chosen(world, 5, 6, 7) == [IN6, IN6, IN4]


@pytest.mark.parametrize("turns", [2**32 - 1, 2**64 - 1])
def test_no_turn_is_lost_where_a_counter_overflows(world: Kernel, turns: int) -> None:
    ring = compile_ring(world, TCP4, [IN4, IN4, IN6])
    ring.skip(turns)
    ring.write([IN4, IN6, IN4], RingKind.TURN, port=False, first=turns)
    assert chosen(world, 1, 2, 3, 4) == [IN4, IN6, IN4, IN4]


def test_a_turn_of_which_nothing_comes_is_the_next_ones(world: Kernel) -> None:
    ring = compile_ring(world, TCP4, [IN4, REMOVED, NARROW])
    assert chosen(world, 1) == [IN4]
    for port in (2, 3):
        assert opened(world, port).records[0].kind == RecordKind.SYN
    ring.skip(1)
    assert world.send(raw(ip4() / tcp("S", size=100))).records[0].kind == RecordKind.SYN
    assert chosen(world, 5, 6) == [NARROW, IN4]
    memory = world.tables[4]
    memory[:] = b"\xee" * len(memory)
    ring.skip(2)
    assert opened(world, 7).records[0].flags == RecordFlag.FULL
    assert ring.turns == 6


def chosen(kernel: Kernel, *ports: int) -> list[int]:
    """Return the servers of new connections from these ports."""
    return [opened(kernel, port).records[0].server for port in ports]


@pytest.mark.parametrize(
    "servers", [[], [0], [UNKNOWN], [PASSED], [REMOVED], [4000], [65535]], ids=str
)
def test_what_the_ring_does_not_settle_is_pythons(world: Kernel, servers: list[int]) -> None:
    compile_ring(world, TCP4, servers)
    came = opened(world, 1000)
    assert (came.verdict, came.reasons) == ("DROP", {Reason.MISS: 1})
    (record,) = came.records
    assert (record.kind, record.slot, record.server, record.flags) == (
        RecordKind.SYN,
        NO_SLOT,
        0,
        0,
    )
    assert world.taken(4) == []


def test_a_service_without_its_ring_is_pythons(world: Kernel) -> None:
    world.service(9, "192.0.2.9", 80, TCP)
    came = world.send(raw(ip4(dst="192.0.2.9") / tcp("S")))
    assert came.records[0].kind == RecordKind.SYN


def test_what_its_tunnel_does_not_take_is_pythons(world: Kernel) -> None:
    compile_ring(world, TCP4, [NARROW])
    came = world.send(raw(ip4() / tcp("S", size=100)))
    assert came.records[0].kind == RecordKind.SYN
    last_hop = world.send(raw(ip4(ttl=1) / tcp("S")))
    assert (last_hop.verdict, last_hop.reasons) == ("DROP", {Reason.MISS: 1})
    assert world.taken(4) == []


@pytest.mark.parametrize("flags", ["A", "FA", "R", "SR"])
def test_only_what_opens_a_connection_is_placed(world: Kernel, flags: str) -> None:
    came = world.send(raw(ip4() / tcp(flags)))
    assert (came.verdict, came.reasons) == ("PASS", {Reason.NOT_OPENING: 1})
    assert world.taken(4) == []


def test_sloppy_tcp_takes_its_state_from_the_packet(world: Kernel) -> None:
    compile_ring(world, TCP4, [IN4], flags=ServiceFlag.SLOPPY_TCP)
    assert world.send(raw(ip4() / tcp("A"))).records[0].state == ES


@pytest.mark.parametrize("version", IN_BOTH)
@pytest.mark.parametrize(
    ("in_first", "in_second", "bucket", "place"),
    [
        (0, 0, 0, 0), (1, 0, 0, 1), (1, 4, 0, 1),  # the first, while it is not crowded
        (2, 0, 1, 0), (2, 1, 1, 1), (2, 2, 0, 2),  # then the one with more room
        (3, 2, 1, 2), (3, 3, 0, 3), (4, 3, 1, 3), (3, 4, 0, 3),
    ],
)  # fmt: skip
def test_it_goes_to_the_better_bucket(
    world: Kernel, version: int, in_first: int, in_second: int, bucket: int, place: int
) -> None:
    client, service = (ip4() if version == 4 else ip6()).src, TCP4 if version == 4 else TCP6
    port = next(
        port for port in range(1000, 2000) if len({*world.buckets_of(client, port, service)}) == 2
    )
    buckets = world.buckets_of(client, port, service)
    size = (layout.SLOT4 if version == 4 else layout.SLOT6).size
    memory = world.tables[version]
    for number, taken in zip(buckets, (in_first, in_second), strict=True):
        start = number * layout.SLOTS_PER_BUCKET * size
        memory[start : start + taken * size] = b"\xee" * taken * size
    slot = opened(world, port, version=version).records[0].slot
    assert slot == buckets[bucket] * layout.SLOTS_PER_BUCKET + place


@pytest.mark.parametrize("version", IN_BOTH)
def test_what_finds_both_buckets_full_is_pythons(world: Kernel, version: int) -> None:
    memory = world.tables[version]
    memory[:] = b"\xee" * len(memory)
    before = bytes(memory)
    came = opened(world, 1000, version=version)
    assert (came.verdict, came.reasons) == ("DROP", {Reason.MISS: 1})
    (record,) = came.records
    kind = RecordKind.SYN if version == 4 else RecordKind.MISS
    assert (record.kind, record.flags, record.slot) == (kind, RecordFlag.FULL, NO_SLOT)
    assert record.length == len(record.packet) > 0
    assert bytes(memory) == before


@pytest.mark.parametrize("version", IN_BOTH)
def test_without_room_for_its_record_none_is_placed(world: Kernel, version: int) -> None:
    """Else Python would never hear of it."""
    ring = compile_ring(world, TCP4 if version == 4 else TCP6, [IN4])
    program = world.loaded.programs["lvskit"]
    frame = raw((ip4() if version == 4 else ip6()) / tcp("S"))
    memory = world.tables[version]
    while VERDICTS[program.test_run(frame).verdict] == "TX":
        memory[:] = bytes(len(memory))
    assert world.taken(version) == []
    assert world.reasons()[Reason.LOST] == 1
    assert ring.turns == world.reasons()[Reason.PLACED]
    assert VERDICTS[program.test_run(frame).verdict] == "DROP"
    world.records()
    assert world.send(frame).verdict == "TX"


# --- hashes ---

CLIENTS = st.one_of(
    # No client has an address below, or above.
    st.tuples(st.just(4), st.integers(1 << 24, (127 << 24) - 1).map(IPv4Address)),
    st.tuples(st.just(6), st.integers(1 << 64, (0xFF << 120) - 1).map(IPv6Address)),
)


@pytest.mark.parametrize("port_counts", [False, True], ids=["address", "address and port"])
@pytest.mark.parametrize("kind", [RingKind.SH, RingKind.MH], ids=["sh", "mh"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(client=CLIENTS, port=st.integers(1, 65535).filter(lambda port: port != 20))
def test_a_hashing_scheduler_chooses_the_same(
    world: Kernel,
    kind: RingKind,
    port_counts: bool,
    client: tuple[int, IPv4Address | IPv6Address],
    port: int,
) -> None:
    """The ring's places are told apart by their number, up to what ids there are."""
    version, address = client
    service = TCP4 if version == 4 else TCP6
    places = 256 if kind is RingKind.SH else 251
    compile_ring(world, service, list(range(100, 100 + places)), kind, port=port_counts)
    for number in range(100, 100 + places):
        world.server(number, bytes(world.servers[128:192]))
    for memory in world.tables.values():
        memory[:] = bytes(len(memory))
    head = ip4(src=str(address)) if version == 4 else ip6(src=str(address))
    (record,) = world.send(raw(head / tcp("S", sport=port))).records
    flow = Flow(TCP, address.packed, port, packed(VIP4 if version == 4 else VIP6), 80)
    assert record.server - 100 == place_in_python(kind, flow, places, port_counts)


def place_in_python(kind: RingKind, flow: Flow, places: int, port_counts: bool) -> int:
    """Return the place in its table that the scheduler itself takes."""
    servers = [StandInServer(struct.pack(">I", number)) for number in range(places)]
    scheduler: Scheduler
    if kind is RingKind.SH:
        scheduler = SourceHashing(servers, SourceOptions(port=port_counts))
    else:
        scheduler = MaglevHashing(servers, MaglevOptions(port=port_counts, slots=places))
    chosen = scheduler.schedule(flow)
    assert chosen is not None
    table = scheduler._table
    return next(place for place, server in enumerate(table) if server is chosen)


def test_the_address_is_that_of_the_client(world: Kernel) -> None:
    (record,) = opened(world, 1234).records
    assert record.address[-4:] == IPv4Address(CLIENT4).packed
