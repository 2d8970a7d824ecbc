"""Ask the living kernel, replay its answers on lvskit, say where the two differ.

The kernel's answers have no `varies`: what chance decides is taken out of both sides here, and
nothing else (the README beside the recordings gives the reasons). What the runner of the
recordings knows by itself (late timers, listings in the order of a hash table) stays with it.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvskit import checksum
from lvskit.datapath.extensions import FRAGMENT, behind_options
from lvskit.plugins import Plugins
from lvskit.testing.kernel_timers import SETUP_S, duration_s
from lvskit.testing.vectors import run_scenario
from lvskit.testing.wire import describe
from lvskit.testing.world import MemoryWorld

ASK = "LVSKIT_ORACLE_ASK"
"""The environment variable that names the program that asks the kernel."""

Scenario = dict[str, Any]
_OWN = frozenset(
    ipaddress.ip_address(text).packed
    for text in (
        "192.168.1.175",
        "192.168.1.176",
        "192.168.1.177",
        "2001:db8::175",
        "2001:db8::176",
    )
)
_MARKED = bytes((172, 16))
"""The beginning of the director's further addresses, for firewall marks."""
_GUE_PORT = 6080
_CLOCK_ERROR_S = 1.5e-4
"""How well it is known when a scenario began; an entry may be read on the edge of a tick."""
_BOOT_S = 0.0005
"""Until the kernel that is asked gets to its first scenario."""
_TUNNELS = frozenset({4, 41, 47})


# --- the kernel ---


def ask(scenarios: Iterable[Scenario], program: str | None = None) -> dict[str, Scenario]:
    """Ask the kernel; return its answers by name. One that it died of has no answer.

    Args:
        scenarios: with different names.
        program: to ask; None = what the environment names.
    """
    scenarios = list(scenarios)
    if not scenarios:
        return {}
    program = program or os.environ[ASK]
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder, "questions"), Path(folder, "answers")
        questions.mkdir()
        paths = []
        for scenario in scenarios:
            paths.append(questions / f"{scenario['name']}.json")
            paths[-1].write_text(json.dumps(scenario))
        done = subprocess.run(
            [program, "-o", answers, *paths], capture_output=True, text=True, check=False
        )
        found = [json.loads(path.read_text()) for path in sorted(answers.glob("*.json"))]
        if not found:
            raise RuntimeError(f"{program} answered nothing: {done.stderr or done.stdout}")
    answered = {answer["name"]: answer for answer in found}
    for scenario in scenarios:  # the kernel is not told of marks, the firewall beside it is
        if scenario["name"] in answered and scenario["director"].get("marks"):
            answered[scenario["name"]]["director"]["marks"] = scenario["director"]["marks"]
    _dated(answered)
    return answered


# --- what chance decides ---


def without_chance(packet: bytes) -> bytes:
    """Return a packet that the director sent, without what the kernel leaves to chance.

    That is: the IP ID of its own ICMP and of tunnels without DF, and that of IPv6 fragments; the
    source port of GUE; the flow label of its own ICMPv6 and resets; and the checksums over them,
    where they were right.
    """
    if packet[0] >> 4 == 6:
        return _ipv6(packet)
    size = (packet[0] & 15) * 4
    changed = bytearray(packet)
    own = packet[12:16] in _OWN or packet[12:14] == _MARKED
    df, protocol = packet[6] & 0x40, packet[9]
    gue = protocol == 17 and own and _gue(packet[size:])
    first = not (packet[6] & 0x1F or packet[7])
    if own and not df and (protocol in _TUNNELS or protocol in (1, 17)):
        changed[4:6] = b"\0\0"
        if not checksum(packet[:size]):
            changed[10:12] = b"\0\0"
    if gue and first and packet[6] & 0x20:  # the rest, which the checksum covers, is not here
        changed[size : size + 2] = changed[size + 6 : size + 8] = b"\0\0"
    elif gue and first:
        pseudo = packet[12:20] + bytes((0, 17)) + (len(packet) - size).to_bytes(2, "big")
        changed[size:] = _no_source_port(packet[size:], pseudo)
    return bytes(changed)


def _ipv6(packet: bytes) -> bytes:
    changed = bytearray(packet)
    named, at = behind_options(packet)
    if packet[named] == FRAGMENT and at + 8 <= len(packet):
        changed[at + 4 : at + 8] = bytes(4)
        first = not (packet[at + 2] or packet[at + 3] & 0xF8)
        if first and packet[8:24] in _OWN and packet[at] == 17 and _gue(packet[at + 8 :]):
            changed[at + 8 : at + 10] = changed[at + 14 : at + 16] = b"\0\0"
    if packet[8:24] in _OWN and (packet[6] == 58 or _reset(packet)):
        changed[1:4] = bytes((packet[1] & 0xF0, 0, 0))
    if packet[8:24] in _OWN and packet[6] == 17 and _gue(packet[40:]):
        pseudo = packet[8:40] + (len(packet) - 40).to_bytes(4, "big") + bytes((0, 0, 0, 17))
        changed[40:] = _no_source_port(packet[40:], pseudo)
    return bytes(changed)


def _reset(packet: bytes) -> bool:
    """Whether an IPv6 packet is a TCP reset without data."""
    return packet[6] == 6 and len(packet) == 60 and bool(packet[53] & 4)


def _gue(body: bytes) -> bool:
    return len(body) >= 8 and int.from_bytes(body[2:4], "big") == _GUE_PORT


def _no_source_port(body: bytes, pseudo: bytes) -> bytes:
    """Return a UDP datagram without source port, and without checksum if it had a right one."""
    right = not checksum(pseudo + body)
    return b"\0\0" + body[2:6] + (b"\0\0" if right else body[6:8]) + body[8:]


class FixedWorld(MemoryWorld):
    """The memory datapath, with chance taken out of what it emits."""

    def emitted(self, sent: bytes = b"") -> list[Scenario]:
        """Return what was emitted since the last call, and would have been recorded."""
        return [
            {**entry, "hex": without_chance(bytes.fromhex(entry["hex"])).hex()}
            for entry in super().emitted(sent)
            if not _unrecorded(bytes.fromhex(entry["hex"]))
        ]


def _unrecorded(packet: bytes) -> bool:
    """Whether the recorder takes a packet for multicast housekeeping: IPv6 with hop-by-hop."""
    return packet[0] >> 4 == 6 and packet[6] == 0


def fixed(answer: Scenario) -> Scenario:
    """Return an answer with chance taken out of it: its packets as bytes alone."""
    answer = copy.deepcopy(answer)
    for step in answer["steps"]:
        step.pop("varies", None)
        expect = step["expect"]
        if "out" in expect:
            expect["out"] = [
                {
                    "next_hop": entry["next_hop"],
                    "hex": without_chance(bytes.fromhex(entry["hex"])).hex(),
                }
                for entry in expect["out"]
            ]
    return answer


def recorded(answer: Scenario) -> Scenario:
    """Return an answer as a recording for tests/vectors: chance is named in `varies`."""
    answer = copy.deepcopy(answer)
    for step in answer["steps"]:
        varies = []
        for index, entry in enumerate(step["expect"].get("out", ())):
            changed, sent = without_chance(bytes.fromhex(entry["hex"])), entry["hex"]
            if changed.hex() == sent:
                continue
            varies.append(f"/out/{index}/hex")
            mine, theirs = describe(changed), describe(bytes.fromhex(sent))
            varies += [
                f"/out/{index}/packet/{field}"
                for field in ("flow", "sport")
                if mine.get(field) != theirs.get(field)
            ]
        if varies:
            step["varies"] = varies
    return answer


# --- the comparison ---


@dataclass(frozen=True)
class Result:
    """What became of a scenario.

    Attributes:
        kind: agreed, differs, skipped (lvskit lacks something), or unanswered.
        step: the first that differs.
        field: what differs there: out, conns, services, stdout …
        detail: how, for people.
    """

    name: str
    kind: str
    step: int = 0
    field: str = ""
    detail: str = ""


def _dated(answers: dict[str, Scenario]) -> None:
    """Write down when each answer of one run of the kernel began, in seconds since it booted.

    Time is simulated there, so this follows from what came before; and from it, how late timers
    are.
    """
    uptime = _BOOT_S
    for name in sorted(answers):
        uptime += SETUP_S
        answers[name]["uptime_s"] = round(uptime, 6)
        uptime += duration_s(answers[name])


def compare(answer: Scenario, plugins: Plugins) -> Result:
    """Replay an answer on lvskit."""
    name = answer["name"]
    question = fixed(answer)
    try:
        outcome = run_scenario(question, plugins, memory=FixedWorld)
        for shift in (-_CLOCK_ERROR_S, _CLOCK_ERROR_S, -2 * _CLOCK_ERROR_S, 2 * _CLOCK_ERROR_S):
            if outcome.kind == "failed" and outcome.timing:
                moved = {**question, "uptime_s": question["uptime_s"] + shift}
                again = run_scenario(moved, plugins, memory=FixedWorld)
                outcome = max(outcome, again, key=lambda each: each.progress)
    except Exception as err:  # a crash is the gravest difference there is
        return Result(name, "differs", 0, "crash", f"{type(err).__name__}: {err}")
    if outcome.kind == "passed":
        return Result(name, "agreed")
    if outcome.kind == "skipped":
        return Result(name, "skipped", detail=outcome.detail)
    what = re.sub(r"step \d+ \(.*?\): (?=\S+: |[a-z]+ )", "", outcome.detail, count=1)
    field = re.split(r"[\[:. ]", what, maxsplit=1)[0]
    field = field if field in _FIELDS else "services"
    return Result(name, "differs", outcome.step, field, _readable(outcome.detail))


_FIELDS = ("rc", "stdout", "stderr", "chosen", "out", "conns", "conn_count", "servers")


def _readable(detail: str) -> str:
    """Return a difference of packets' bytes by their fields."""
    found = re.search(r"\.hex: expected '([0-9a-f]+)', got '([0-9a-f]+)'", detail)
    if not found:
        return detail
    want, got = (describe(bytes.fromhex(text)) for text in found.groups())
    names = [name for name in {**want, **got} if want.get(name) != got.get(name)]
    fields = "; ".join(f"{name}: {want.get(name)!r} → {got.get(name)!r}" for name in names)
    return f"{detail[: found.start()]}: {fields or 'bytes only'}\n  {found[1]}\n  {found[2]}"


def compare_all(
    scenarios: Sequence[Scenario], plugins: Plugins, program: str | None = None
) -> list[tuple[Result, Scenario]]:
    """Ask about all, and compare; return the results with the answers."""
    answers = ask(scenarios, program)
    results = []
    for scenario in scenarios:
        answer = answers.get(scenario["name"])
        if answer is None:
            results.append((Result(scenario["name"], "unanswered"), scenario))
        else:
            results.append((compare(answer, plugins), answer))
    return results
