"""The round-robin schedulers: rr and wrr."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import SchedulerSpec, Traits, hookimpl
from lvskit_sched_rr.rr import RoundRobin
from lvskit_sched_rr.wrr import WeightedRoundRobin


@hookimpl
def lvskit_register_schedulers() -> Iterable[SchedulerSpec]:
    """Register both schedulers."""
    return [
        SchedulerSpec(name="rr", factory=RoundRobin, summary="each server in turn"),
        SchedulerSpec(
            name="wrr",
            factory=WeightedRoundRobin,
            traits=Traits(weighted=True),
            summary="each server in turn, as often as its weight says",
        ),
    ]
