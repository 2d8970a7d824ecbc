"""Replay recordings of the real kernel and compare: ``python -m lvskit.testing.vectors PATH…``.

Each scenario is a list of steps; a step does something and says what was seen after it. The
schema, and what may differ and why, is told in the README beside the recordings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from lvskit.errors import DatapathError
from lvskit.plugins import Plugins, load_plugins
from lvskit.testing.comparison import (
    compare_output,
    compare_packets,
    compare_settings,
    compare_state,
    packet_of,
)
from lvskit.testing.kernel_timers import COARSE, ESTIMATOR_PHASES, FINE, KernelClock, retimed
from lvskit.testing.live_world import LiveWorld
from lvskit.testing.wire import Tree
from lvskit.testing.world import MemoryWorld, Unsupported, World


class MakesWorlds(Protocol):
    """Sets a scenario up on a datapath; a clock lets timers run as late as the kernel's."""

    def __call__(self, scenario: Tree, plugins: Plugins, clock: KernelClock | None) -> World:
        """Return the world before the first step."""


DATAPATHS: dict[str, MakesWorlds] = {"memory": MemoryWorld, "live": LiveWorld}


@dataclass(frozen=True)
class Outcome:
    """What became of a scenario.

    Attributes:
        kind: passed, failed or skipped; `detail` says why.
        step: the first that differed.
        timers_fired: an entry's time had come before it.
        estimates: it shows statistics.
    """

    name: str
    kind: str
    detail: str = ""
    step: int = 0
    timers_fired: bool = False
    estimates: bool = False

    @property
    def progress(self) -> float:
        """How far it went: the step that differed, or beyond all."""
        return self.step if self.kind == "failed" else float("inf")


def run_scenario(scenario: Tree, plugins: Plugins, datapath: str = "memory") -> Outcome:
    """Replay one scenario; the outcome names the first step that differs, and how.

    Timers are on time. A recording that shows the kernel's late timers at work is replayed with
    timers as late as those (`kernel_timers`): one tick count at the start must explain the whole
    of it. It is looked for on the memory datapath, where that takes a moment.
    """
    make = DATAPATHS[datapath]
    outcome = _replay(scenario, partial(make, scenario, plugins, None))
    if outcome.kind == "failed" and _arrives_in_tunnel(scenario["steps"][outcome.step - 1]):
        scenario = _unpacking(scenario, outcome.step)
        outcome = _replay(scenario, partial(make, scenario, plugins, None))
    if outcome.kind != "failed":
        return outcome
    timed = retimed(scenario)
    explained, clock = _explain(timed, plugins)
    if datapath == "memory":
        return explained
    return _replay(timed, partial(make, timed, plugins, clock))


def _explain(timed: Tree, plugins: Plugins) -> tuple[Outcome, KernelClock]:
    """Return the clock that explains most of a scenario, and how far that gets."""

    def best(clocks: Iterable[KernelClock]) -> list[tuple[Outcome, KernelClock]]:
        """Return the outcomes that went furthest, with their clocks."""
        tried = []
        for clock in clocks:
            tried.append((_replay(timed, partial(MemoryWorld, timed, plugins, clock)), clock))
            if tried[-1][0].kind != "failed":
                break
        furthest = max(found.progress for found, _ in tried)
        return [(found, clock) for found, clock in tried if found.progress == furthest]

    found = best([KernelClock()])
    if found[0][0].estimates:
        found = best(KernelClock(estimator_s=phase) for phase in ESTIMATOR_PHASES)
    outcome = found[0][0]
    if outcome.kind == "failed" and outcome.timers_fired:
        clock = found[len(found) // 2][1]
        equal = best(replace(clock, jiffies=fine) for fine in FINE)
        found = equal
        for _, near in (equal[0], equal[len(equal) // 2], equal[-1]):
            if found[0][0].kind != "failed":
                break
            fine = near.jiffies or 0
            later = best(replace(clock, jiffies=fine + coarse) for coarse in COARSE)
            found = max(found, later, key=lambda each: each[0][0].progress)
    return found[0]


def _arrives_in_tunnel(step: Tree) -> bool:
    return bool(step["do"].get("pkt", {}).get("proto") == "ipip")


def _unpacking(scenario: Tree, step: int) -> Tree:
    """Return `scenario` with a host that unpacks IP in IP from `step` on.

    Recordings do not tell when the director's own tunnel device came up.
    """
    steps = [
        {**each, "do": {**each["do"], "unpack": True}} if each["n"] == step else each
        for each in scenario["steps"]
    ]
    return {**scenario, "steps": steps}


def _replay(scenario: Tree, make: Callable[[], World]) -> Outcome:
    name = scenario["name"]
    try:
        world = make()
    except Unsupported as missing:
        return Outcome(name, "skipped", str(missing))
    try:
        for step in scenario["steps"]:
            difference = _run_step(world, scenario, step)
            if difference:
                what = f"step {step['n']} ({_title(step['do'])}): {difference}"
                estimates = bool({"--stats", "--rate"} & set(step["do"].get("argv", ())))
                fired = world.timers_fired()
                return Outcome(name, "failed", what, step["n"], fired, estimates)
    except Unsupported as missing:
        return Outcome(name, "skipped", f"step {step['n']}: {missing}")
    finally:
        world.close()
    return Outcome(name, "passed")


def _run_step(world: World, scenario: Tree, step: Tree) -> str:
    """Do one step; return the first difference, or nothing."""
    do, expect = step["do"], step["expect"]
    varies = set(step.get("varies", ()))
    world.set_time(step["t"])
    seen: Tree = {}
    if do["op"] == "ipvsadm":
        if "uid" in do:
            raise Unsupported("privileges of the ipvsadm process itself")
        seen = world.ipvsadm(do["argv"], do.get("stdin", ""))
        if seen["refused"] and expect["rc"] != seen["rc"]:
            raise Unsupported(seen["refused"])
        seen["out"] = world.emitted()
    elif do["op"] == "send":
        if do.get("unpack"):
            world.unpack()
        seen["out"] = world.send(packet_of(do))
        tunnelled = [entry for entry in seen["out"] if entry.get("tunnelled_to")]
        seen["chosen"] = tunnelled[0]["tunnelled_to"] if tunnelled else None
    elif do["op"] == "sleep":
        seen["out"] = world.emitted()
    elif do["op"] == "sysctl":
        world.setting(do["name"], do["value"])
        seen["settings"] = world.settings()
    elif do["op"] == "read_sysctls":
        seen["settings"] = world.settings()
    else:
        raise Unsupported(f"operation {do['op']}")
    world.set_time(step["t"] + scenario.get("settle_s", 0.0))
    return (
        compare_output(expect, seen, varies)
        or compare_settings(expect, seen.get("settings", {}), do)
        or compare_packets(expect, seen, do, varies)
        or compare_state(world, scenario["conns_mode"], expect, do, varies)
    )


def _title(do: Tree) -> str:
    if do["op"] == "ipvsadm":
        return " ".join(["ipvsadm", *do["argv"]])
    if do["op"] == "send":
        packet = do.get("pkt", {})
        ports = f"{packet.get('src')}:{packet.get('sport', 0)} {packet.get('flags', '')}"
        return f"send {packet.get('proto', '')} {ports}".strip()
    return f"{do['op']} {do.get('seconds', do.get('name', ''))}"


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Return the recordings that `paths`, files or folders, lead to."""
    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(path.rglob("*.json")) if path.is_dir() else [path]
    return found


def load(path: Path) -> Tree:
    """Return the scenario in a file."""
    scenario: Tree = json.loads(path.read_text())
    return scenario


def main(argv: Sequence[str] | None = None) -> int:
    """Replay the recordings named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lvskit.testing.vectors",
        description="Replay recordings of the real kernel's ip_vs on lvskit and compare.",
        epilog="Prints a line per scenario that fails or is skipped, then the totals.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="recordings, or folders of them")
    parser.add_argument("--datapath", default="memory", choices=sorted(DATAPATHS))
    arguments = parser.parse_args(argv)
    plugins = load_plugins(strict=True)
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    for path in find(arguments.paths):
        try:
            outcome = run_scenario(load(path), plugins, arguments.datapath)
        except DatapathError as err:
            print(f"{parser.prog}: {err}", file=sys.stderr)
            return 2
        totals[outcome.kind] += 1
        if outcome.kind != "passed":
            print(f"{outcome.kind}: {outcome.name}: {outcome.detail}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in totals.items()))
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
