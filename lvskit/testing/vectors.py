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
from typing import Any, Protocol

from lvskit.plugins import Plugins, load_plugins
from lvskit.testing.kernel_timers import COARSE, ESTIMATOR_PHASES, FINE, KernelClock, retimed
from lvskit.testing.wire import Tree
from lvskit.testing.world import MemoryWorld, Unsupported


class World(Protocol):
    """A director in the setting of a scenario, on some datapath."""

    def set_time(self, now: float) -> None:
        """Let time pass until `now`, seconds since the start."""

    def setting(self, name: str, value: object) -> None:
        """Change one of the kernel's settings; `Unsupported` where that cannot be."""

    def ipvsadm(self, argv: list[str], stdin: str) -> Tree:
        """Run a command; return `rc`, `stdout`, `stderr`, and `refused`: why, if it was."""

    def send(self, packet: bytes) -> list[Tree]:
        """Let `packet` arrive; return what the director emits."""

    def emitted(self) -> list[Tree]:
        """Return what was emitted since the last call."""

    def services(self) -> dict[str, dict[str, list[Any]]]:
        """Return services and servers with their counts."""

    def conns(self) -> list[Tree]:
        """Return the connection table."""

    def timers_fired(self) -> bool:
        """Whether any entry's time has come so far."""

    def close(self) -> None:
        """Take it all down."""


DATAPATHS: dict[str, Callable[[Tree, Plugins], World]] = {"memory": MemoryWorld}

_TABLE = "IPVS connection entries"


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

    On the memory datapath timers are on time. A recording that shows the kernel's late timers at
    work is replayed with timers as late as those (`kernel_timers`): one tick count at the start
    must explain the whole of it.
    """
    outcome = _replay(scenario, partial(DATAPATHS[datapath], scenario, plugins))
    if outcome.kind != "failed" or datapath != "memory":
        return outcome
    timed = retimed(scenario)

    def replay(clock: KernelClock) -> Outcome:
        return _replay(timed, partial(MemoryWorld, timed, plugins, clock))

    def best(clocks: Iterable[KernelClock]) -> list[tuple[Outcome, KernelClock]]:
        """Return the outcomes that went furthest, with their clocks."""
        tried = []
        for clock in clocks:
            tried.append((replay(clock), clock))
            if tried[-1][0].kind != "failed":
                break
        furthest = max(found.progress for found, _ in tried)
        return [(found, clock) for found, clock in tried if found.progress == furthest]

    clocks = [KernelClock()]
    outcome = replay(clocks[0])
    if outcome.estimates:
        found = best(KernelClock(estimator_s=phase) for phase in ESTIMATOR_PHASES)
        outcome, clocks = found[0][0], [clock for _, clock in found]
    if outcome.kind == "failed" and outcome.timers_fired:
        clock = clocks[len(clocks) // 2]
        equal = best(replace(clock, jiffies=fine) for fine in FINE)
        candidates = [equal[0], equal[len(equal) // 2], equal[-1]]
        outcome = equal[0][0]
        for _, near in candidates:
            if outcome.kind != "failed":
                break
            fine = near.jiffies or 0
            found = best(replace(clock, jiffies=fine + coarse) for coarse in COARSE)
            outcome = max(outcome, found[0][0], key=lambda each: each.progress)
    return outcome


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
        seen["out"] = world.send(_packet(do))
        tunnelled = [entry for entry in seen["out"] if entry.get("tunnelled_to")]
        seen["chosen"] = tunnelled[0]["tunnelled_to"] if tunnelled else None
    elif do["op"] == "sleep":
        seen["out"] = world.emitted()
    elif do["op"] == "sysctl":
        world.setting(do["name"], do["value"])
    else:
        raise Unsupported(f"operation {do['op']}")
    world.set_time(step["t"] + scenario.get("settle_s", 0.0))
    return (
        _compare_output(expect, seen, varies)
        or _compare_packets(expect, seen, do, varies)
        or _compare_state(world, scenario["conns_mode"], expect, do, varies)
    )


def _packet(do: Tree) -> bytes:
    if "hex" in do:
        return bytes.fromhex(do["hex"])
    raise Unsupported("a packet without bytes")


def _compare_output(expect: Tree, seen: Tree, varies: set[str]) -> str:
    for field in ("rc", "stdout", "stderr"):
        if field not in expect:
            continue
        want, got = expect[field], seen[field]
        if str(want).startswith(_TABLE) or f"/{field}" in varies:
            # Listed in the order of a hash table with a random seed.
            want, got = sorted(want.splitlines()), sorted(got.splitlines())
        if want != got:
            return f"{field}: expected {want!r}, got {got!r}"
    return ""


def _compare_packets(expect: Tree, seen: Tree, do: Tree, varies: set[str]) -> str:
    if "out" not in expect:
        return ""
    if "/out" in varies:
        return ""
    if "chosen" in expect and expect["chosen"] != seen["chosen"]:
        return f"chosen: expected {expect['chosen']}, got {seen['chosen']}"
    want, got = expect["out"], seen["out"]
    if want == "ipip":
        want = [_plain_tunnel(do, expect["chosen"])]
    if len(want) != len(got):
        return f"out: expected {len(want)} packets {want!r}, got {len(got)} {got!r}"
    for index, (one, other) in enumerate(zip(want, got, strict=True)):
        for field, value in one.items():
            if f"/out/{index}/{field}" in varies:
                continue
            left, right = value, other.get(field)
            if field == "packet" and isinstance(left, dict) and isinstance(right, dict):
                loose = [k for k in left if f"/out/{index}/packet/{k}" in varies]
                right = {**right, **{k: left[k] for k in loose}}
            if left != right:
                return f"out[{index}].{field}: expected {left!r}, got {right!r}"
    return ""


def _plain_tunnel(do: Tree, chosen: str) -> Tree:
    """Return what `"out": "ipip"` is short for."""
    sent = _packet(do)
    outer = {
        "src": "192.168.1.175",
        "dst": chosen,
        "tos": sent[1],
        "ttl": sent[8] - 1,
        "df": bool(sent[6] & 0x40),
        "len": len(sent) + 20,
        "proto": "ipip",
    }
    inner = {"as-sent-but": {"ttl": sent[8] - 1}}
    return {"next_hop": f"x.{chosen.rpartition('.')[2]}", "outer": outer, "inner": inner}


def _compare_state(world: World, mode: str, expect: Tree, do: Tree, varies: set[str]) -> str:
    conns = world.conns()
    difference = ""
    if mode == "full" and "conns" in expect:
        difference = _compare_conns(expect["conns"], conns, varies)
    elif "flow_conns" in expect and do["op"] == "send":
        clients = {entry["client"] for entry in expect["flow_conns"]}
        mine = [entry for entry in conns if entry["client"] in clients]
        difference = _compare_conns(expect["flow_conns"], mine, varies)
    count = expect.get("conn_count", len(conns))
    if count != len(conns) and "/conn_count" not in varies:
        difference = difference or f"conn_count: expected {count}, got {len(conns)}"
    if "services" in expect:
        difference = difference or _compare_services(expect["services"], world.services(), varies)
    return difference


def _compare_conns(want: list[Tree], got: list[Tree], varies: set[str]) -> str:
    if "/conns" in varies:
        return ""
    if [_identity(entry) for entry in want] != [_identity(entry) for entry in got]:
        return f"conns: expected {want!r}, got {got!r}"
    for index, (entry, mine) in enumerate(zip(want, got, strict=True)):
        if entry["expires"] != mine["expires"] and f"/conns/{index}/expires" not in varies:
            seconds = f"expected {entry['expires']}, got {mine['expires']}"
            return f"conns: expires of {_identity(entry)}: {seconds}"
    return ""


def _identity(entry: Tree) -> tuple[str, ...]:
    return tuple(entry[name] for name in ("proto", "client", "virtual", "rs", "state"))


def _compare_services(want: Tree, got: Tree, varies: set[str]) -> str:
    if set(want) != set(got):
        return f"services: expected {sorted(want)}, got {sorted(got)}"
    for name, servers in want.items():
        if list(servers) != list(got[name]):
            return f"servers of {name}: expected {list(servers)}, got {list(got[name])}"
        for server, values in servers.items():
            mine = got[name][server]
            for index, value in enumerate(values):
                path = f"/services/{name}/{server}/{index}"
                if mine[index] != value and path not in varies:
                    return f"{server} of {name}: expected {values}, got {mine}"
    return ""


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
        outcome = run_scenario(load(path), plugins, arguments.datapath)
        totals[outcome.kind] += 1
        if outcome.kind != "passed":
            print(f"{outcome.kind}: {outcome.name}: {outcome.detail}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in totals.items()))
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
