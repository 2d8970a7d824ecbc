"""What the XDP datapath costs: ``python bench/xdp.py``, as root.

Each part is a module beside this one, which says how it measures. Every figure of the datapath
stands beside that of the kernel's plain LRU_HASH in the place of its table, taken in the same run,
and beside what it is to be at most, or at least. All of it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import xdp_adoption
import xdp_cable
import xdp_connections
import xdp_memory
import xdp_packets
from xdp_table import FULL, QUICK, Row, Scale, show

PARTS = {
    "packets": xdp_packets.measure,
    "cable": xdp_cable.measure,
    "connections": xdp_connections.measure,
    "memory": xdp_memory.measure,
    "adoption": xdp_adoption.measure,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = list(PARTS)
    some = f"parts, of {', '.join(PARTS)}"
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", default=every, metavar="PART", help=some
    )
    parser.add_argument("--quick", action="store_true", help="see that it works, and little else")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    rows: list[Row] = []
    show(kept(measured(arguments.only, QUICK if arguments.quick else FULL), rows))
    if arguments.json:
        machine = {"kernel": platform.release(), "python": platform.python_version()}
        found = {**machine, "cpus": os.cpu_count(), "rows": [row._asdict() for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def measured(parts: Iterable[str], scale: Scale) -> Iterator[Row]:
    """Yield the rows of parts."""
    for part in parts:
        yield from PARTS[part](scale)


def kept(rows: Iterable[Row], into: list[Row]) -> Iterator[Row]:
    """Yield rows, and keep them."""
    for row in rows:
        into.append(row)
        yield row


if __name__ == "__main__":
    main()
