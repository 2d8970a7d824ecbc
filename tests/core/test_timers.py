"""The timer wheel against a list that is sorted anew at every look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvskit.core.timers import Wheel


@dataclass(eq=False)
class Entry:
    deadline: float
    slot: object = None
    filed: bool = field(default=False)


# What happens, in turn: new, file an entry that ends in so many seconds; touch the n-th entry, its
# deadline moves to later, and the wheel is not told; hurry it, to earlier, and the wheel is told;
# file it again; forget it; let time pass.
# Many of a second's parts: what happens within the slot that is open is the delicate case.
PARTS = st.sampled_from([0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75])
SECONDS = PARTS | st.sampled_from([1, 1.5, 2, 9.75, 10, 60, 61.25, 300, 900, 5000])
WHICH = st.integers(0, 30)
ACTIONS = st.sampled_from(["new", "new", "touch", "hurry", "again", "forget"])
STEPS = st.lists(
    st.tuples(ACTIONS, WHICH, SECONDS) | st.tuples(st.just("pass"), WHICH, SECONDS),
    min_size=10,
    max_size=80,
)


def drain(wheel: Wheel[Entry], now: float) -> list[Entry]:
    found = []
    while (entry := wheel.due(now)) is not None:
        assert entry.slot is None
        entry.filed = False
        found.append(entry)
    return found


@given(STEPS, st.sampled_from([0.0, 0.75, 1_000_000.5]))
def test_entries_leave_on_time_and_in_order(steps: list[Any], start: float) -> None:
    wheel: Wheel[Entry] = Wheel(start)
    entries: list[Entry] = []
    now, fired = start, 0
    for action, which, seconds in steps:
        filed = [e for e in entries if e.filed]
        if action == "pass":
            now += seconds
            due = sorted((e for e in filed if e.deadline <= now), key=lambda e: e.deadline)
            found = drain(wheel, now)
            assert [e.deadline for e in found] == [e.deadline for e in due]
            assert set(found) == set(due)
            fired += len(found)
        elif action == "new":
            entries.append(Entry(now + seconds, filed=True))
            wheel.schedule(entries[-1])
        elif filed:
            entry = filed[which % len(filed)]
            if action == "touch":
                entry.deadline += seconds
            elif action == "hurry":
                entry.deadline = max(entry.deadline - seconds, now)
                wheel.schedule(entry)
            elif action == "again":
                wheel.schedule(entry)
            else:
                wheel.forget(entry)
                entry.filed = False
        remaining = [e.deadline for e in entries if e.filed]
        if remaining:
            upcoming = wheel.next()
            assert upcoming is not None
            assert upcoming <= min(remaining)
        assert wheel.fired == fired
    for entry in entries:
        entry.deadline = min(entry.deadline, now + 1)
    drain(wheel, now + 100_000)
    assert not [e for e in entries if e.filed]
    assert wheel.next() is None


@given(st.lists(st.sampled_from([3.0, 3.25, 3.5]), min_size=2, max_size=8), st.booleans())
def test_of_equal_deadlines_the_one_filed_last_is_first(
    deadlines: list[float], current: bool
) -> None:
    """A connection before the template that it was made from, which is filed just before it."""
    wheel: Wheel[Entry] = Wheel(0.0)
    if current:  # the slot is open already
        wheel.schedule(Entry(3.0))
        assert drain(wheel, 3.0)
    entries = [Entry(deadline) for deadline in deadlines]
    for entry in entries:
        wheel.schedule(entry)
    wanted = sorted(enumerate(entries), key=lambda pair: (pair[1].deadline, -pair[0]))
    assert drain(wheel, 4.0) == [entry for _, entry in wanted]


@given(st.lists(SECONDS, min_size=1, max_size=20))
def test_following_next_finds_every_entry_at_its_instant(deadlines: list[float]) -> None:
    """Who sleeps until `next` and no longer is never late."""
    wheel: Wheel[Entry] = Wheel(0.0)
    for deadline in deadlines:
        wheel.schedule(Entry(deadline))
    found = []
    while (now := wheel.next()) is not None:
        found += [(entry.deadline, now) for entry in drain(wheel, now)]
    assert sorted(deadline for deadline, _ in found) == sorted(deadlines)
    assert all(deadline == at for deadline, at in found)


def test_a_touched_entry_costs_one_look_per_deadline_that_it_had() -> None:
    """A busy connection is not filed again with every packet."""
    wheel: Wheel[Entry] = Wheel(0.0)
    entry = Entry(60.0)
    wheel.schedule(entry)
    for now in range(1, 60):
        entry.deadline = now + 60.0
        assert wheel.due(now) is None
    assert wheel.next() == 60.0
    assert wheel.due(60.0) is None
    assert wheel.next() == 119.0
    assert wheel.due(118.999) is None
    assert wheel.due(119.0) is entry
    assert wheel.fired == 1


def test_within_the_open_slot() -> None:
    """Moved to later, moved to earlier, forgotten: the older filing is ignored."""
    wheel: Wheel[Entry] = Wheel(0.0)
    later, earlier, gone = Entry(0.5), Entry(0.75), Entry(0.5)
    for entry in (later, earlier, gone):
        wheel.schedule(entry)
    assert wheel.due(0.125) is None  # opens the slot
    later.deadline = 0.875
    earlier.deadline = 0.25
    wheel.schedule(earlier)
    wheel.forget(gone)
    assert drain(wheel, 0.25) == [earlier]
    assert drain(wheel, 0.75) == []
    assert drain(wheel, 1.0) == [later]
    assert wheel.next() is None


def test_what_is_filed_last_may_leave_between_what_was_filed_before() -> None:
    wheel: Wheel[Entry] = Wheel(0.0)
    for deadline in (1.5, 2.2, 2.6):
        wheel.schedule(Entry(deadline))
    assert [entry.deadline for entry in drain(wheel, 1.6)] == [1.5]
    wheel.schedule(Entry(2.3))
    assert [entry.deadline for entry in drain(wheel, 3.0)] == [2.2, 2.3, 2.6]


def test_an_empty_wheel() -> None:
    wheel: Wheel[Entry] = Wheel(5.0)
    assert wheel.next() is None
    assert wheel.due(1e9) is None
    entry = Entry(1e9 + 1)
    wheel.schedule(entry)
    wheel.forget(entry)
    assert wheel.due(1e9 + 2) is None


@pytest.mark.parametrize("start", [0.0, 7.875])
def test_an_entry_that_is_due_already_leaves_at_once(start: float) -> None:
    wheel: Wheel[Entry] = Wheel(start)
    entry = Entry(start)
    wheel.schedule(entry)
    assert wheel.due(start) is entry
    assert wheel.due(start + 100) is None
