"""What the parts of ``bench/xdp.py`` share: how much they measure, and what a row of theirs is."""

from __future__ import annotations

import ctypes
import multiprocessing
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from typing import Any, NamedTuple

NEAR = bytes.fromhex("0200000000fe")  # hardware address of a cable's near end
_NEWNET = 0x40000000


class Scale(NamedTuple):
    """How much is measured.

    `flows` known connections, `rooms` of tables that `new` connections are put into, flows over a
    `cable`, connections `opened` through Python, `held` at once, and `adopted`. Test runs `repeat`
    so often. The best of so many `rounds` counts, of the longer parts of so many `turns`.
    """

    flows: tuple[int, ...] = (1, 1_000, 10_000, 100_000, 1_000_000)
    rooms: tuple[int, ...] = (25_000, 1_000_000)
    new: int = 25_000
    cable: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    opened: int = 200_000
    held: int = 1_000_000
    adopted: int = 1_000_000
    repeat: int = 1_000_000
    rounds: int = 5
    turns: int = 3


FULL = Scale()
QUICK = Scale((1, 1_000), (2_000,), 2_000, (1_000,), 2_000, 2_000, 2_000, 10_000, 1, 1)


class Row(NamedTuple):
    """A figure of ours, beside it that of the kernel's LRU_HASH, and what ours may be.

    `size` is the number of flows or connections; what is more than `at_most`, or less than
    `at_least`, has missed its mark. Of units "… per CPU second" the more the better.
    """

    what: str
    size: int
    unit: str
    ours: float
    lru_hash: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def gain(self) -> float | None:
        """How many times better than LRU_HASH."""
        if self.lru_hash is None:
            return None
        many = self.unit.endswith("per CPU second")
        return self.ours / self.lru_hash if many else self.lru_hash / self.ours

    @property
    def mark(self) -> str:
        """What it may be."""
        if self.at_most is not None:
            return f"at most {self.at_most:,.0f}"
        return "" if self.at_least is None else f"at least {self.at_least:,.0f}"


def show(rows: Iterable[Row]) -> None:
    """Print a table, as the rows come."""
    for unit, group in groupby(rows, lambda row: row.unit):
        print(f"{unit:36} {'flows':>9} {'ours':>11} {'LRU_HASH':>11} {'gain':>5}  wanted")
        for row in group:
            few = row.ours < 20
            ours = f"{row.ours:,.2f}" if few else f"{row.ours:,.0f}"
            other = "" if row.lru_hash is None else f"{row.lru_hash:,.0f}"
            gain = "" if row.gain is None else f"{row.gain:.2f}"
            line = f"  {row.what:34} {row.size:9,} {ours:>11} {other:>11} {gain:>5}  {row.mark}"
            print(line.rstrip(), flush=True)


def apart(measure: Callable[..., Any], *arguments: object) -> Any:
    """Return a result from a process of its own, whose memory no other run has used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(measure, *arguments).result()


def cable(near: str, far: str) -> None:
    """Move this process into a network namespace with nothing but a cable in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET):
        raise SystemExit("needs root: no network namespace can be made")
    own = NEAR.hex(":")
    for command in (
        f"add {near} address {own} type veth peer {far}",
        f"set {near} up",
        f"set {far} up",
    ):
        subprocess.run(["ip", "link", *command.split()], check=True)
