"""Slots as Python writes them and the program reads them; its clock; expiry by its last packet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.clock import Clock
from lvskit_datapath_xdp.loader import Map, MapFlags, MapSpec, MapType
from lvskit_datapath_xdp.slots import NO_PLACE, Slots, Slots4, Slots6
from lvskit_datapath_xdp.timing import SeenWheel

SEED = SimpleNamespace(seed=0x0123_4567_89AB_CDEF, multiplier=0xD6E8_FEB8_6659_FD93)
BUCKETS = 4
KINDS = {4: (Slots4, layout.SLOT4), 6: (Slots6, layout.SLOT6)}


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def table(bpf: None, request: pytest.FixtureRequest) -> Iterator[tuple[Slots, Map]]:
    """A table of four buckets, and its map."""
    kind, slot = KINDS[request.param]
    spec = MapSpec("connections", MapType.ARRAY, 4, slot.size * 4, BUCKETS, MapFlags.MMAPABLE)
    with Map.create(spec) as map_:
        yield kind(map_, SEED), map_


def written(map_: Map, number: int) -> tuple[Any, ...]:
    """Return a slot as the layout has it."""
    slot = layout.SLOT4 if map_.spec.value_size == layout.SLOT4.size * 4 else layout.SLOT6
    bucket = map_.lookup(number // layout.SLOTS_PER_BUCKET)
    assert bucket is not None
    return slot.unpack_from(bucket, number % layout.SLOTS_PER_BUCKET * slot.size)


def client(map_: Map) -> bytes:
    return bytes(range(1, 5 if map_.spec.value_size == layout.SLOT4.size * 4 else 17))


def test_a_slot_has_what_the_layout_says(table):
    slots, map_ = table
    key = slots.key(client(map_).ljust(16, b"\0"), b"\x12\x34", 7)
    number = slots.insert(2, 3, key, 9 | 3 << 16, 0xABCDEF01)
    assert number // layout.SLOTS_PER_BUCKET == 2
    assert written(map_, number) == (client(map_), b"\x12\x34", 7, 9, 3, 0, 0xABCDEF01)
    assert slots.holds(number, key)
    assert not slots.holds(number, slots.key(client(map_).ljust(16, b"\0"), b"\x12\x35", 7))
    assert (written(map_, number)[4], slots.seen(number)) == (3, 0xABCDEF01)
    slots.set_state(number, 4)
    assert written(map_, number)[4] == 4


def test_one_clients_connections_have_two_choices_each(table):
    """Whatever differs: the last byte of an address, or that of a port, or the service."""
    slots, map_ = table
    slots._mask = 63
    for differing in range(3):
        apart = set()
        for number in range(100):
            last = [0, 0, 1]
            last[differing] = number
            address = client(map_)[:-1] + bytes((last[0],))
            one, other = slots.buckets(slots.key(address, bytes((9, last[1])), last[2]))
            apart.add(one ^ other)
        assert len(apart) > 32


def test_the_emptier_bucket_is_taken_and_a_full_one_passed_by(table):
    slots, map_ = table
    places = []
    for port in range(9):
        key = slots.key(client(map_), bytes((9, port)), 1)
        places.append(slots.insert(0, 1, key, port, 1))
    assert sorted(places[:8]) == list(range(8))
    assert [place // 4 for place in places[:8]] == [0, 1] * 4
    assert (places[8], slots.unplaced) == (NO_PLACE, 1)


def test_a_slot_given_back_is_free_for_the_next(table):
    slots, map_ = table
    key = slots.key(client(map_), b"\0\1", 1)
    ended, lasting = SimpleNamespace(place=None), SimpleNamespace(place=None)
    for connection in (ended, lasting):
        slots.own(slots.insert(0, 0, key, 1, 1), connection)
    freed = ended.place
    slots.release(ended)
    slots.release(ended)
    assert written(map_, freed)[:3] == (written(map_, freed)[0], b"\0\0", 0)
    assert [each for each in slots.owners if each] == [lasting]
    assert slots.owners[lasting.place] == lasting
    assert slots.insert(0, 0, key, 1, 1) == freed


def test_a_slot_that_the_program_took_is_not_written_over(table):
    slots, map_ = table
    key = slots.key(client(map_), b"\0\1", 1)
    size = map_.spec.value_size
    map_.update(1, b"\xff" * size)  # full, as far as the program is concerned
    assert slots.insert(1, 1, key, 1, 1) == NO_PLACE
    assert map_.lookup(1) == b"\xff" * size


@given(st.floats(-1e6, 1e6), st.floats(0.2, 0.4), st.integers(0, 2**31), st.floats(0, 1e5))
def test_what_was_seen_was_seen_then(origin: float, unit_s: float, seen: int, later: float):
    clock = Clock(origin, unit_s)
    begun = origin + seen * unit_s
    now = begun + later
    assert clock.until(seen, now) <= now
    assert begun - 1e-5 <= clock.until(seen, now) <= begun + unit_s + 1e-5
    assert clock.units(begun + unit_s / 2) == seen


def entry(deadline: float) -> Any:
    return SimpleNamespace(deadline=deadline, slot=None)


def test_an_entry_ends_by_the_last_packet_that_the_program_saw():
    kept = {}
    known: Callable[[Any, float], float] = lambda each, now: kept.get(id(each), 0.0)  # noqa: E731
    wheel = SeenWheel(0.0, known)
    quick, slow = entry(5.0), entry(5.0)
    wheel.schedule(quick)
    wheel.schedule(slow)
    kept[id(slow)] = 7.25
    assert wheel.due(4.9) is None
    assert wheel.due(5.0) is quick
    assert wheel.due(7.2) is None
    assert slow.deadline == 7.25
    assert wheel.due(7.25) is slow
    assert (wheel.due(100.0), wheel.fired) == (None, 2)
