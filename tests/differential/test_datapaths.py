"""The same invented traffic through every datapath: choices, bytes, tables and counters agree.

The live datapath is compared with the memory one, and those of plugins with the live one, by
packets on a wire, in a network namespace. The environment variable LVSKIT_TRAFFIC_SEED is the first
seed, for other traffic than usually.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from compare import without_chance
from generate import Scenario, scenario

from lvskit import DatapathError, load_plugins
from lvskit.testing.live_world import LiveWorld, rehearsals
from lvskit.testing.world import DirectorWorld, MemoryWorld, Unsupported

pytestmark = pytest.mark.integration
PLUGINS = load_plugins(strict=True)
STEP_S = 0.02
FIRST = int(os.environ.get("LVSKIT_TRAFFIC_SEED", "1"))
TCP, RST = 6, 4


class Seen(NamedTuple):
    """What there was after a step.

    Attributes:
        sent: next hop and bytes of each packet, without what chance decides.
        printed: by a command: exit status and lines.
        connections, services: as listings have them.
        counters: by service and server.
    """

    sent: list[tuple[str, str]]
    printed: tuple[int, list[str]]
    connections: list[Any]
    services: dict[str, Any]
    counters: dict[str, dict[str, str]]


def play(world: DirectorWorld, scenario: Scenario) -> Iterator[Seen]:
    """Yield what is seen after each step."""
    now = 0.0
    for step in scenario["steps"]:
        do, printed = step["do"], (0, [""])
        now += STEP_S + do.get("seconds", 0)
        world.set_time(now)
        if do["op"] == "send":
            sent = world.send(bytes.fromhex(do["hex"]))
        else:
            if do["op"] == "ipvsadm":
                said = world.ipvsadm(do["argv"], "")
                printed = said["rc"], sorted(said["stdout"].splitlines())
            elif do["op"] == "sysctl":
                world.setting(do["name"], do["value"])
            sent = world.emitted()
        # Before the next begins, for what has ended by then ends at once on some.
        world.set_time(now + STEP_S * 0.99)
        yield Seen(
            [(e["next_hop"], without_chance(bytes.fromhex(e["hex"])).hex()) for e in sent],
            printed,
            world.conns(),
            world.services(),
            {
                service.name: {server.name: str(server.counters) for server in service.servers}
                for service in world.director.services
            },
        )


def played(make: Any, scenario: Scenario) -> tuple[list[Seen], dict[str, int]]:
    """Return what is seen on a datapath, and how packets were carried."""
    world = make(scenario, PLUGINS)
    try:
        return list(play(world, scenario)), world.carried()
    finally:
        world.close()


def resets(seen: Seen) -> bool:
    """Whether the host itself has refused a segment: the memory datapath's director hears of it.

    The live one's does so for local servers alone (tests/integration/test_live_vectors.py).
    """
    packets = [bytes.fromhex(sent) for _, sent in seen.sent]
    return any(
        (p[0] == 0x45 and p[9] == TCP and p[33] & RST)
        or (p[0] >> 4 == 6 and p[6] == TCP and p[53] & RST)
        for p in packets
    )


@pytest.mark.parametrize("datapath", sorted(rehearsals()))
@pytest.mark.parametrize(("profile", "count"), [("steady", 30), ("everything", 10)])
def test_invented_traffic_is_carried_alike(profile: str, count: int, datapath: str) -> None:
    total: Counter[str] = Counter()
    make = partial(LiveWorld, make=rehearsals()[datapath]())
    for seed in range(FIRST, FIRST + count):
        invented = scenario(profile, seed, 0)
        for step in invented["steps"]:
            step["do"]["hex"] = step["do"].get("pkt", {}).get("raw", "")
        try:
            got, carried = played(make, invented)
            want, _ = played(MemoryWorld if datapath == "live" else LiveWorld, invented)
        except Unsupported:
            continue  # what one of them cannot do in simulated time
        except DatapathError as err:
            pytest.skip(str(err))
        total.update(carried)
        for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            if datapath == "live" and resets(theirs):
                break
            for field, value in theirs._asdict().items():
                step = invented["steps"][number]["do"]
                assert getattr(mine, field) == value, f"seed {seed}, step {number}: {field}; {step}"
    assert all(total.values()), "it has gone past one of the ways"
