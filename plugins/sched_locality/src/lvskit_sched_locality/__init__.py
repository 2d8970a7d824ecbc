"""The locality-based schedulers, which keep a virtual address with its servers: lblc and lblcr."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import SchedulerSpec, hookimpl
from lvskit_sched_locality.cache import LocalityOptions
from lvskit_sched_locality.lblc import LocalityLeastConnection
from lvskit_sched_locality.lblcr import ReplicatedLocality


@hookimpl
def lvskit_register_schedulers() -> Iterable[SchedulerSpec]:
    """Register both schedulers."""
    return [
        SchedulerSpec(
            name="lblc",
            factory=LocalityLeastConnection,
            options=LocalityOptions,
            summary="one server for each virtual address, while it can carry the load",
        ),
        SchedulerSpec(
            name="lblcr",
            factory=ReplicatedLocality,
            options=LocalityOptions,
            summary="a set of servers for each virtual address, which grows with the load",
        ),
    ]
