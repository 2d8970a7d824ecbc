"""The hashing schedulers: sh by client, dh by virtual address, mh by client on a Maglev table."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import SchedulerSpec, Traits, hookimpl
from lvskit_sched_hash.dh import DestinationHashing
from lvskit_sched_hash.mh import MaglevHashing, MaglevOptions
from lvskit_sched_hash.sh import SourceHashing, SourceOptions


@hookimpl
def lvskit_register_schedulers() -> Iterable[SchedulerSpec]:
    """Register the three schedulers."""
    # None is total: a client whose server may not be used is refused (with `fallback`, mh still
    # may be out of luck). sh is not weighted: 256 buckets hold no more than 256 units of weight.
    return [
        SchedulerSpec(
            name="sh",
            factory=SourceHashing,
            options=SourceOptions,
            flags=("fallback", "port"),
            traits=Traits(total=False, flow_consistent=True),
            summary="the server that the client's address hashes to",
        ),
        SchedulerSpec(
            name="dh",
            factory=DestinationHashing,
            traits=Traits(total=False, flow_consistent=True),
            summary="the server that the virtual address hashes to",
        ),
        SchedulerSpec(
            name="mh",
            factory=MaglevHashing,
            options=MaglevOptions,
            flags=("fallback", "port"),
            traits=Traits(weighted=True, total=False, flow_consistent=True),
            summary="the server that the client hashes to; few clients move when servers change",
        ),
    ]
