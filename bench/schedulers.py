"""What a choice costs: ``python bench/schedulers.py``.

Prints microseconds of CPU for every installed scheduler and 10, 100 and 1,000 servers with ten
connections each: for a choice by itself, and for one with what goes before it in a director's
life: another connection was opened, one was closed, and the scheduler was told of both if it asks
to be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from random import Random

from lvskit import TCP, Flow, SchedulerBase, SchedulerSpec, load_plugins
from lvskit.records import build_options
from lvskit.testing.reference import Pool

VIP = bytes([192, 168, 1, 176])
FLOWS = [Flow(TCP, bytes([10, *n.to_bytes(3, "big")]), 1024 + n, VIP, 80) for n in range(20_000)]


def cost(work: Callable[[list[Flow]], object], flows: list[Flow]) -> float:
    """Return the least CPU microseconds per choice of five rounds."""
    rounds = []
    for _ in range(5):
        started = time.process_time()
        work(flows)
        rounds.append(time.process_time() - started)
    return min(rounds) / len(flows) * 1e6


def measure(spec: SchedulerSpec, count: int) -> tuple[float, float]:
    """Return what a choice among `count` servers costs by itself, and in a director's life."""
    pool = Pool()
    for number in range(count):
        pool.add(100 * (1 + number % 3))
        pool.load(0, 10)
    scheduler = spec.factory(pool.servers, build_options(spec, {}))
    schedule, told = scheduler.schedule, scheduler.load_changed
    deaf = getattr(type(scheduler), "load_changed", None) is SchedulerBase.load_changed
    opened = deque(pool.servers * 10)
    Random(1).shuffle(opened)

    def alone(flows: list[Flow]) -> None:
        for flow in flows:
            schedule(flow)

    def alive(flows: list[Flow]) -> None:
        for flow in flows:
            server = schedule(flow)
            server.activeconns += 1
            opened.append(server)
            closed = opened.popleft()
            closed.activeconns -= 1
            if not deaf:
                told(server)
                told(closed)

    flows = FLOWS if count <= 100 else FLOWS[:2_000]  # some look at every server
    return cost(alone, flows), cost(alive, flows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, nargs="+", default=[10, 100, 1_000])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    plugins = load_plugins()
    rows = []
    for name, count in itertools.product(sorted(plugins.schedulers), arguments.servers):
        alone, alive = measure(plugins.scheduler(name), count)
        rows.append({"scheduler": name, "servers": count, "alone_us": alone, "alive_us": alive})
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'scheduler':9} {'servers':>7} {'alone µs':>9} {'with changes µs':>16}")
    for row in rows:
        name, count, alone, alive = row.values()
        print(f"{name:9} {count:7} {alone:9.2f} {alive:16.2f}")


if __name__ == "__main__":
    main()
