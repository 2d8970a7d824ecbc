"""What a packet of a known connection costs in the Director: ``python bench/receive.py``.

Prints microseconds of CPU per packet of 64 bytes, tunnel forwarding included, and their ratio to a
bare dictionary look-up with the slice that makes its key, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable

from lvskit import TCP, Director, Route, ServerSettings, ServiceKey, ServiceSettings, load_plugins
from lvskit.datapath.memory import stack

VIP, DIRECTOR = bytes([192, 168, 1, 176]), bytes([192, 168, 1, 175])
PACKETS = 200_000


def flows(count: int) -> tuple[Director, list[bytes]]:
    """Return a director with `count` established connections, and a packet of each."""
    director = Director(load_plugins(), lambda address: Route(DIRECTOR, 1500), size=count + 1)
    key = ServiceKey.of(TCP, VIP, 80)
    director.add_service(key, ServiceSettings(scheduler="rr"))
    for number in range(11, 19):
        director.add_server(key, bytes([192, 168, 1, number]), None, ServerSettings())
    packets = []
    for number in range(count):
        client = (bytes([10, *number.to_bytes(3, "big")]), 1024)
        director.receive(stack.tcp(client, (VIP, 80), stack.SYN, 1, 0), 0.0)
        packets.append(stack.tcp(client, (VIP, 80), stack.ACK, 1, 1, bytes(24)))
        director.receive(packets[-1], 0.0)
    random.Random(1).shuffle(packets)  # as they come from a crowd, and as caches like it least
    return director, packets


def cost(work: Callable[[bytes], object], packets: list[bytes]) -> float:
    """Return the least CPU microseconds per packet of five rounds."""
    rounds = []
    for _ in range(5 if len(packets) < PACKETS else 2):
        started = time.process_time()
        for _ in range(max(PACKETS // len(packets), 1)):
            for packet in packets:
                work(packet)
        rounds.append(time.process_time() - started)
    return min(rounds) / (max(PACKETS // len(packets), 1) * len(packets)) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, nargs="+", default=[1, 1_000, 100_000, 1_000_000])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows = []
    for count in arguments.flows:
        director, packets = flows(count)
        table = director.table.tcp
        whole = cost(lambda packet, receive=director.receive: receive(packet, 1.0), packets)
        bare = cost(lambda packet, table=table: table[packet[12:24]], packets)
        rows.append({"flows": count, "receive_us": whole, "lookup_us": bare, "ratio": whole / bare})
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'flows':>9} {'receive µs':>11} {'look-up µs':>11} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['flows']:9} {row['receive_us']:11.2f} {row['lookup_us']:11.2f} "
            f"{row['ratio']:6.1f}"
        )


if __name__ == "__main__":
    main()
