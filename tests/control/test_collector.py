"""What the daemon has the garbage collector do, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc
from lvskit.control import collector

class Node:
    freed = 0
    def __del__(self):
        Node.freed += 1

collector.settle()
full = gc.get_stats()[2]["collections"]
kept = [[] for _ in range(1_000_000)]
for _ in range(200_000):
    node = Node()
    node.itself = node
print(gc.get_freeze_count() > 1000, gc.get_stats()[2]["collections"] - full, Node.freed > 100_000)
"""


def test_what_lasts_is_not_looked_at_again_and_again_and_rings_are_still_found() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["True", "0", "True"]
