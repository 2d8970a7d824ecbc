"""The references of `lvskit.testing.reference` by themselves against the real kernel's choices.

No director takes part: what a scheduler sees of its servers (order, weights, connections) is what
the recording shows after the step before. Only who is overloaded is not recorded; it follows from
the thresholds and the counts.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lvskit import TCP, Flow, Scheduler
from lvskit.testing.reference import REFERENCES
from lvskit.testing.vectors import load

VECTORS = Path(__file__).parents[1] / "vectors"
RECORDINGS = sorted([*VECTORS.rglob("sched_*.json"), *VECTORS.glob("life_*.json")])
FLAGS = {"sh-fallback": 1, "sh-port": 2, "mh-fallback": 1, "mh-port": 2}


@dataclass(eq=False)
class Server:
    address: bytes
    port: int
    weight: int = 0
    last_weight: int = 0
    activeconns: int = 0
    inactconns: int = 0
    upper: int = 0
    lower: int = 0
    overloaded: bool = False

    @property
    def name(self) -> str:
        return f"{ipaddress.ip_address(self.address)}:{self.port}"

    @property
    def recovered(self) -> int:
        """The connections below which it is no longer overloaded."""
        return self.lower or self.upper - self.upper // 4

    def edit(self, weight: int, upper: int, lower: int) -> None:
        self.weight = weight
        self.last_weight = weight or self.last_weight
        if (upper, lower) == (self.upper, self.lower):
            return
        self.upper, self.lower = upper, lower
        conns = self.activeconns + self.inactconns
        if upper == 0 or conns < self.recovered:
            self.overloaded = False
        elif conns >= upper:
            self.overloaded = True

    def count(self, active: int, inactive: int) -> None:
        before, after = self.activeconns + self.inactconns, active + inactive
        if before < self.upper <= after:
            self.overloaded = True
        elif after < self.recovered <= before:
            self.overloaded = False
        self.activeconns, self.inactconns = active, inactive


class Replay:
    """The service of a recording, and the reference of its scheduler."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.known: dict[bytes, Server] = {}
        self.choice: tuple[Any, ...] = ()
        self.scheduler: Scheduler

    def step(self, do: dict[str, Any], expect: dict[str, Any], now: float) -> str:
        """Do a step; return the name of the scheduler if it was asked."""
        if hasattr(self, "scheduler"):
            self.scheduler.tick(now)
        if do["op"] == "ipvsadm":
            self.command(do["argv"])
        asked = do["op"] == "send" and "S" in do["pkt"]["flags"] and "R" not in do["pkt"]["flags"]
        if asked:
            packet = do["pkt"]
            client, virtual = (ipaddress.ip_address(packet[end]).packed for end in ("src", "dst"))
            flow = Flow(TCP, client, packet["sport"], virtual, packet["dport"])
            chosen: Any = self.scheduler.schedule(flow)
            assert expect["chosen"] == (chosen and chosen.name.rpartition(":")[0])
        (there,) = expect["services"].values() or [{}]
        assert list(there) == [server.name for server in self.servers]
        for server in self.servers:
            _, weight, active, inactive = there[server.name]
            assert weight == server.weight
            server.count(active, inactive)
        return self.choice[0] if asked else ""

    def command(self, argv: list[str]) -> None:
        what, *words = argv
        given = {w: v for w, v in pairwise(words) if w.startswith("-")}
        if what in ("-A", "-E"):
            flags = frozenset(FLAGS[flag] for flag in given.get("-b", "").split(",") if flag)
            if self.choice != (given["-s"], flags):
                self.choice = given["-s"], flags
                self.scheduler = REFERENCES[given["-s"]](self.servers, flags)
        elif what in ("-a", "-e", "-d"):
            address = ipaddress.ip_address(given["-r"].partition(":")[0]).packed
            port = 0 if "-f" in given else 80  # a server takes its service's
            server = self.known.setdefault(address, Server(address, port))
            if what == "-d":
                self.servers.remove(server)
                self.scheduler.server_removed(server)
                return
            server.edit(*(int(given.get(letter, 0)) for letter in ("-w", "-x", "-y")))
            if what == "-e":
                self.scheduler.server_updated(server)
                return
            self.servers.insert(0, server)
            self.scheduler.server_added(server)
        else:
            assert what in ("-Ln", "--set")


@cache
def replay(path: Path) -> Counter[str]:
    """Replay a recording; return how often each scheduler was asked in it."""
    scenario, replayed = load(path), Replay()
    asked = Counter(
        replayed.step(step["do"], step["expect"], step["t"]) for step in scenario["steps"]
    )
    del asked[""]
    return asked


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_kernel_chose_as_the_reference_does(path: Path) -> None:
    assert replay(path)


def test_every_reference_is_held_against_the_kernel() -> None:
    asked = sum(map(replay, RECORDINGS), Counter[str]())
    assert set(asked) == set(REFERENCES)
    assert min(asked.values()) >= 75
