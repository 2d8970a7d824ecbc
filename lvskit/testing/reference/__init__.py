"""Schedulers again, slow and obvious: what the fast ones are compared with.

Each follows from the description of the algorithm and shares no code or trick with the plugin that
it checks. `Pool` drives a scheduler and its reference side by side:

>>> pool = Pool(RotationRoundRobin)
>>> for weight in (1, 1, 0):
...     pool.add(weight)
>>> [pool.pick() for turn in range(4)]
[1, 0, 1, 0]

Every reference has a scheduler's methods, so it is one: useful as a known-good stand-in as well.
Its options are the numbers of the scheduler's flags that are on, as in `ServiceSettings.flags`,
or None. The recordings of the real kernel hold for the references by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lvskit import Scheduler
from lvskit.testing.reference.hashes import DestinationHash, Maglev, SourceHash
from lvskit.testing.reference.loads import (
    FractionLc,
    FractionNq,
    FractionSed,
    FractionWlc,
    Strongest,
    StrongestWithRoom,
)
from lvskit.testing.reference.locality import ServerByAddress, ServerSetByAddress
from lvskit.testing.reference.pool import CLIENT, Pool
from lvskit.testing.reference.turns import CycleWeightedRoundRobin, RotationRoundRobin

REFERENCES: dict[str, Callable[[Sequence[Any], Any], Scheduler]] = {
    "rr": RotationRoundRobin,
    "wrr": CycleWeightedRoundRobin,
    "lc": FractionLc,
    "wlc": FractionWlc,
    "sed": FractionSed,
    "nq": FractionNq,
    "sh": SourceHash,
    "dh": DestinationHash,
    "mh": Maglev,
    "fo": Strongest,
    "ovf": StrongestWithRoom,
    "lblc": ServerByAddress,
    "lblcr": ServerSetByAddress,
}
"""The reference of each scheduler of Linux 6.1, by name."""

__all__ = [
    "CLIENT",
    "REFERENCES",
    "CycleWeightedRoundRobin",
    "DestinationHash",
    "FractionLc",
    "FractionNq",
    "FractionSed",
    "FractionWlc",
    "Maglev",
    "Pool",
    "RotationRoundRobin",
    "ServerByAddress",
    "ServerSetByAddress",
    "SourceHash",
    "Strongest",
    "StrongestWithRoom",
]
