"""Replay recordings of the real kernel and compare: ``python -m lvskit.testing.vectors PATH…``.

Each scenario is a list of steps; a step does something and says what was seen after it. The
schema, and what may differ and why, is told in the README beside the recordings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from lvskit.testing.kernel_timers import KernelClock, fitted, retimed
from lvskit.testing.lacking import without
from lvskit.testing.live_world import LiveWorld, rehearsals
from lvskit.testing.wire import Tree
from lvskit.testing.world import MemoryWorld, Unsupported, World


class MakesWorlds(Protocol):
    """Sets a scenario up on a datapath; a clock lets timers run as late as the kernel's."""

    def __call__(self, scenario: Tree, plugins: Plugins, clock: KernelClock | None) -> World:
        """Return the world before the first step."""


def datapaths() -> list[str]:
    """Return the names of the datapaths that scenarios can be replayed on."""
    return sorted(["memory", *rehearsals()])


@dataclass(frozen=True)
class Outcome:
    """What became of a scenario.

    Attributes:
        kind: passed, failed or skipped; `detail` says why.
        step: the first that differed.
        timing: that may be a matter of when the kernel's timers ran.
        left_out: what of it was not asked for, and why (`lacking`).
        carried: packets by the way in which the datapath carried them, where it has several.
    """

    name: str
    kind: str
    detail: str = ""
    step: int = 0
    timing: bool = False
    left_out: tuple[str, ...] = ()
    carried: Mapping[str, int] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """How far it went: the step that differed, or beyond all."""
        return self.step if self.kind == "failed" else float("inf")


def run_scenario(
    scenario: Tree,
    plugins: Plugins,
    datapath: str = "memory",
    memory: type[MemoryWorld] = MemoryWorld,
) -> Outcome:
    """Replay one scenario; the outcome names the first step that differs, and how.

    A subclass of the memory datapath's world may be given to see more, or to show less, of it.

    Timers are on time. A recording that shows the kernel's late timers at work is replayed with
    timers as late as those (`kernel_timers`): one tick count at the start must explain the whole
    of it, unless it says itself how long the kernel had run (`uptime_s`). The count is looked for
    on the memory datapath, where that takes a moment.
    """
    scenario, left_out = without(scenario)
    outcome = _run(scenario, plugins, datapath, memory)
    return replace(outcome, left_out=tuple(left_out))


def _run(scenario: Tree, plugins: Plugins, datapath: str, memory: type[MemoryWorld]) -> Outcome:
    make: MakesWorlds = memory
    if datapath != "memory":
        make = partial(LiveWorld, make=rehearsals()[datapath]())

    def timed(clock: KernelClock, make: MakesWorlds) -> Outcome:
        steps = retimed(scenario, clock.phase_s)
        return _replay(steps, partial(make, steps, plugins, clock))

    if "uptime_s" in scenario:
        return timed(KernelClock.started(scenario["uptime_s"]), make)
    outcome = _replay(scenario, partial(make, scenario, plugins, None))
    if outcome.kind == "failed" and _arrives_in_tunnel(scenario["steps"][outcome.step - 1]):
        scenario = _unpacking(scenario, outcome.step)
        outcome = _replay(scenario, partial(make, scenario, plugins, None))
    if not outcome.timing:
        return outcome
    explained, clock = fitted(lambda clock: timed(clock, memory), lambda seen: seen.progress)
    return explained if datapath == "memory" else timed(clock, make)


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
                timing = world.timers_fired() or "expires of" in difference
                timing |= bool({"--stats", "--rate"} & set(step["do"].get("argv", ())))
                return Outcome(name, "failed", what, step["n"], timing, carried=world.carried())
        return Outcome(name, "passed", carried=world.carried())
    except Unsupported as missing:
        return Outcome(name, "skipped", f"step {step['n']}: {missing}")
    finally:
        world.close()


def _run_step(world: World, scenario: Tree, step: Tree) -> str:
    """Do one step; return the first difference, or nothing."""
    do, expect = step["do"], step["expect"]
    varies = set(step.get("varies", ()))
    world.set_time(step["t"])
    seen: Tree = {}
    if do["op"] == "ipvsadm":
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
    world.set_time(step.get("settled", step["t"] + scenario.get("settle_s", 0.0)))
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
    parser.add_argument("--datapath", default="memory", choices=datapaths())
    arguments = parser.parse_args(argv)
    plugins = load_plugins(strict=True)
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    carried: Counter[str] = Counter()
    for path in find(arguments.paths):
        try:
            outcome = run_scenario(load(path), plugins, arguments.datapath)
        except (DatapathError, OSError) as err:
            print(f"{parser.prog}: {err}", file=sys.stderr)
            return 2
        totals[outcome.kind] += 1
        carried.update(outcome.carried)
        if outcome.kind != "passed":
            print(f"{outcome.kind}: {outcome.name}: {outcome.detail}", flush=True)
        for line in outcome.left_out:
            print(f"left out: {outcome.name}: {line}", flush=True)
    if carried:
        print("packets:", ", ".join(f"{count} {way}" for way, count in carried.items()))
    print(", ".join(f"{count} {kind}" for kind, count in totals.items()))
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
