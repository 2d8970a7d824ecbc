"""Packets through the program, one test for each row of the table."""

from __future__ import annotations

import pytest
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import NO_SLOT, Reason
from scapy.layers import inet
from scapy.layers.l2 import Ether
from xdp_cases import KNOWN_CONNECTION, UNKNOWN_CONNECTION, Case
from xdp_kernel import Kernel, Sent, packed, port_bytes
from xdp_world import (
    CLIENT4,
    CLIENT6,
    ES,
    IN4,
    SEEN,
    SERVERS,
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    ip4,
    ip6,
    populate,
    raw,
    tcp,
)  # fmt: skip


def connection_of(frame: bytes) -> tuple[int, str, int, int]:
    """Return IP version, client, port and service of a frame."""
    layer = Ether(frame).payload
    stream = layer.haslayer(inet.TCP)
    service = {(4, 1): TCP4, (4, 0): UDP4, (6, 1): TCP6, (6, 0): UDP6}[layer.version, stream]
    return layer.version, layer.src, layer.payload.sport, service


def ip_length(frame: bytes) -> int:
    """Return what the IP header says of its packet's length."""
    if frame[14] >> 4 == 4:
        return int.from_bytes(frame[16:18], "big")
    return 40 + int.from_bytes(frame[18:20], "big")


def check(case: Case, came: Sent, slot: int) -> None:
    """Check what came of a case's frame, and that nothing else did."""
    assert came.verdict == case.verdict
    assert came.reasons == case.reasons
    assert came.frame == (case.frame if case.out is None else case.out)
    if case.record is None:
        assert came.records == []
        return
    (record,) = came.records
    expected = {"slot": slot, **case.record}
    assert {name: getattr(record, name) for name in expected} == expected


@pytest.fixture
def world(kernel: Kernel) -> Kernel:
    """The program in its small world."""
    populate(kernel)
    return kernel


@pytest.mark.parametrize("case", UNKNOWN_CONNECTION, ids=lambda case: case.description)
def test_a_packet_of_no_known_connection(world: Kernel, case: Case) -> None:
    check(case, world.send(case.frame), NO_SLOT)
    assert not any(world.tables[4])
    assert not any(world.tables[6])


@pytest.mark.parametrize("second", [False, True], ids=["first bucket", "second bucket"])
@pytest.mark.parametrize("case", KNOWN_CONNECTION, ids=lambda case: case.description)
def test_a_packet_of_a_known_connection(world: Kernel, case: Case, second: bool) -> None:
    assert case.known is not None
    server, state = case.known
    version, client, port, service = connection_of(case.frame)
    slot = world.connect(client, port, service, server, state, seen=SEEN, second=second)
    check(case, world.send(case.frame), slot)
    carried = case.verdict in ("TX", "REDIRECT")
    *_, bound, after, flags, seen = world.slot(version, slot)
    assert (bound, after) == (server, state if case.state is None else case.state)
    assert flags == (layout.SlotFlag.ONE if carried else 0)
    assert (seen == SEEN) != carried  # only what is carried keeps a connection alive
    counted = (1, ip_length(case.frame)) if carried else (0, 0)
    assert world.counted("service", service) == counted
    if server < len(SERVERS):
        assert world.counted("server", server) == counted


@pytest.mark.parametrize("field", ["address", "port", "service"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_neighbour_is_not_taken_for_it(world: Kernel, version: int, field: str) -> None:
    """All bits of the key count: each slot of both buckets differs in one."""
    client, service = (CLIENT4, TCP4) if version == 4 else (CLIENT6, TCP6)
    form, raw_client = (layout.SLOT4 if version == 4 else layout.SLOT6), packed(client)
    values = {
        "address": range(8 * len(raw_client)),
        "port": range(16),
        "service": range(2, 16),  # the services themselves are numbered up to 5
    }[field]
    frame = raw((ip4() if version == 4 else ip6()) / tcp("A"))
    buckets = world.buckets_of(client, 1024, service)
    memory = world.tables[version]
    for bit in values:
        more = 1 << bit
        address = int.from_bytes(raw_client, "big") ^ (more if field == "address" else 0)
        other = (
            address.to_bytes(len(raw_client), "big"),
            port_bytes(1024 ^ (more if field == "port" else 0)),
            service ^ (more if field == "service" else 0),
        )
        for bucket in buckets:
            start = bucket * layout.SLOTS_PER_BUCKET * form.size
            slot = form.pack(*other, IN4, ES, 0, 0)
            memory[start : start + layout.SLOTS_PER_BUCKET * form.size] = slot * 4
        assert world.send(frame).reasons == {Reason.NOT_OPENING: 1}
