"""The least-connection family of schedulers: wlc, lc, sed and nq."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import SchedulerSpec, Traits, hookimpl
from lvskit_sched_wlc.lc import LeastConnection
from lvskit_sched_wlc.nq import NeverQueue
from lvskit_sched_wlc.sed import ShortestExpectedDelay
from lvskit_sched_wlc.wlc import WeightedLeastConnection


@hookimpl
def lvskit_register_schedulers() -> Iterable[SchedulerSpec]:
    """Register the four schedulers."""
    weighted = Traits(weighted=True)
    return [
        SchedulerSpec(
            name="wlc",
            factory=WeightedLeastConnection,
            traits=weighted,
            summary="fewest connections for its weight",
        ),
        SchedulerSpec(name="lc", factory=LeastConnection, summary="fewest connections"),
        SchedulerSpec(
            name="sed",
            factory=ShortestExpectedDelay,
            traits=weighted,
            summary="shortest expected delay: active connections plus one for its weight",
        ),
        SchedulerSpec(
            name="nq",
            factory=NeverQueue,
            traits=weighted,
            summary="an idle server first, else shortest expected delay",
        ),
    ]
