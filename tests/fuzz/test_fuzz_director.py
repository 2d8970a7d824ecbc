"""The Director under everything that hypothesis thinks of; see `fuzzkit.world`."""

from __future__ import annotations

import tracemalloc

from fuzzkit.source import Bytes, Drawn
from fuzzkit.world import VIP, World, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvskit import ServerSettings
from lvskit.testing import packets
from lvskit.types import UDP

SERVER = "198.51.100.1"
MOST_KEPT = 2 << 20
"""Bytes; twice what 64 connections, statistics and a reassembly's allowance may take."""


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_happens(data: st.DataObject) -> None:
    play(Drawn(data, steps=40))


@given(st.binary(max_size=400))
def test_whatever_a_fuzzer_would_try(data: bytes) -> None:
    from targets import director

    director.check(data)


def test_a_flood_of_strangers_costs_bounded_memory() -> None:
    """New flows, fragments that never end, and errors about nothing; the table has 64 places."""
    world = World(Bytes(bytes(40)))
    world.director.add_server(world.keys[0], packets.address(SERVER), None, ServerSettings())
    packets_ = [
        make(number)
        for number in range(3000)
        for make in (_handshake, _lone_fragment, _error_about_nothing)
    ]
    tracemalloc.start()
    try:
        for packet in packets_:
            world.now += 0.001
            world.director.receive(packet, world.now)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(world.director.table) == 64
    assert used < MOST_KEPT
    world.end()


def _client(number: int) -> bytes:
    return bytes((10, 9, number >> 8, number & 255))


def _handshake(number: int) -> bytes:
    return packets.tcp(_client(number), 1024, VIP[4], 80, "S")


def _lone_fragment(number: int) -> bytes:
    return packets.ip(
        _client(number), VIP[4], UDP, bytes(1400), df=False, more=True, offset=3,
        identification=number,
    )  # fmt: skip


def _error_about_nothing(number: int) -> bytes:
    quote = packets.tcp(VIP[4], 80, _client(number), 99, "A")
    return packets.icmp_error("192.0.2.99", VIP[4], 3, 4, quote, rest=1400)
