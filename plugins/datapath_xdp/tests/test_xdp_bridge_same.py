"""The same packets through a director alone, and by the program with the bridge: all is equal."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from xdp_fast import STEPS, Fast, Step, director, packet, state, told


@pytest.mark.usefixtures("bpf")
@pytest.mark.parametrize("scheduler", ["wlc", "rr"])
@given(steps=STEPS)
@settings(max_examples=40, deadline=None)
def test_both_ways_are_one(scheduler: str, steps: list[Step]) -> None:
    now = time.monotonic()
    alone, fast = director(scheduler, now), Fast(scheduler, now)
    try:
        for step in steps:
            now = time.monotonic()
            expected = told(alone.receive(packet(step), now))
            assert fast.take(packet(step), now) == expected
            fast.servers.count()
            assert list(state(fast.director)) == list(state(alone))
        fast.bridge.deadlines.keep_all(time.monotonic())
        ends = {(c.protocol, c.key): c.deadline for c in alone.table}
        for connection in fast.director.table:
            assert ends[connection.protocol, connection.key] == pytest.approx(
                connection.deadline, abs=0.3
            )
        # Every connection that is known has its slot, and no slot is anyone else's.
        there = set(fast.director.table)
        assert set(fast.bridge._slots[4].known()) == there
    finally:
        fast.close()
