"""The schedulers that fill one server before the next: fo and ovf."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import SchedulerSpec, Traits, hookimpl
from lvskit_sched_spill.fo import FailOver
from lvskit_sched_spill.ovf import Overflow


@hookimpl
def lvskit_register_schedulers() -> Iterable[SchedulerSpec]:
    """Register both schedulers."""
    return [
        SchedulerSpec(
            name="fo",
            factory=FailOver,
            traits=Traits(flow_consistent=True),
            summary="the heaviest server takes everything",
        ),
        SchedulerSpec(
            name="ovf",
            factory=Overflow,
            traits=Traits(total=False),  # where all are full, it refuses
            summary="the heaviest server until it has as many active connections as it weighs",
        ),
    ]
