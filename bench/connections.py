"""What a connection costs from its first packet to its end, and what it weighs.

``python bench/connections.py`` opens connections and lets the director forget them when their time
comes, on simulated time; then it holds many at once, established, and reads the memory of the
process before and after. Wall seconds and CPU microseconds; the ratio is to a bare
dictionary insert and delete of the same keys, measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
from pathlib import Path

from lvskit import TCP, Director, Route, ServerSettings, ServiceKey, ServiceSettings, load_plugins
from lvskit.datapath.memory import stack

VIP, DIRECTOR = bytes([192, 168, 1, 176]), bytes([192, 168, 1, 175])
SYN_RECV_S = 60.0


def director_of(size: int, scheduler: str) -> Director:
    """Return a director with eight servers."""
    director = Director(load_plugins(), lambda address: Route(DIRECTOR, 1500), size=size)
    key = ServiceKey.of(TCP, VIP, 80)
    director.add_service(key, ServiceSettings(scheduler=scheduler))
    for number in range(11, 19):
        director.add_server(key, bytes([192, 168, 1, number]), None, ServerSettings())
    return director


def segments(count: int, flags: int) -> list[bytes]:
    """Return one segment of each of `count` clients."""
    clients = [(bytes([10, *number.to_bytes(3, "big")]), 1024) for number in range(count)]
    return [stack.tcp(client, (VIP, 80), flags, 1, 0) for client in clients]


def lives(count: int, scheduler: str) -> dict[str, float]:
    """Return what it costs to open and close `count` connections in one simulated second."""
    packets = segments(count, stack.SYN)
    director = director_of(count + 1, scheduler)
    receive, step = director.receive, 1.0 / count
    wall, cpu = time.perf_counter(), time.process_time()
    now = 0.0
    for segment in packets:
        now += step
        receive(segment, now)
    director.expire(now + SYN_RECV_S + 1)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(director.table) == 0
    keys = [segment[12:24] for segment in packets]
    bare = time.process_time()
    table: dict[bytes, object] = {}
    for key in keys:
        table[key] = None
    for key in keys:
        del table[key]
    bare = time.process_time() - bare
    return {
        "per_second": count / wall,
        "cpu_us": cpu / count * 1e6,
        "ratio": cpu / bare,
    }


def weight(count: int) -> float:
    """Return bytes of memory per connection with `count` established ones."""
    director = director_of(count + 1, "rr")
    gc.collect()
    before = resident()
    for number in range(count):
        client = (bytes([10, *number.to_bytes(3, "big")]), 1024)
        director.receive(stack.tcp(client, (VIP, 80), stack.SYN, 1, 0), number * 1e-6)
        director.receive(stack.tcp(client, (VIP, 80), stack.ACK, 1, 1), number * 1e-6)
    gc.collect()
    return (resident() - before) / count


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="opened and closed")
    parser.add_argument("--held", type=int, default=1_000_000, help="at once, for the memory")
    parser.add_argument("--schedulers", nargs="+", default=["rr", "wlc"])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = {name: lives(arguments.count, name) for name in arguments.schedulers}
    held = weight(arguments.held)
    if arguments.json:
        print(json.dumps({"lives": found, "held": arguments.held, "bytes": held}))
        return
    print(f"{'scheduler':>9} {'opened and closed/s':>20} {'CPU µs each':>12} {'ratio':>6}")
    for name, row in found.items():
        print(f"{name:>9} {row['per_second']:20,.0f} {row['cpu_us']:12.2f} {row['ratio']:6.1f}")
    print(f"{arguments.held:,} established connections: {held:.0f} bytes each")


if __name__ == "__main__":
    main()
