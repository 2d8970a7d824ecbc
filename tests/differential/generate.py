"""Invent scenarios: ``python tests/differential/generate.py --seed 1 --count 3 --out DIR``.

A scenario has the form of the recordings in tests/vectors, without what is expected. The same
profile, seed and number give the same scenario on every version of Python.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from administration import MARKED_ROUTE, Administration, Do
from dice import Dice
from profiles import PROFILES, Profile
from traffic import Traffic

Scenario = dict[str, Any]
STEPS = 60
# Odd milliseconds, or deadlines would fall on the very tick at which the table is read.
_SECONDS = {
    0.053: 3, 0.307: 2, 1.003: 3, 2.007: 3, 3.509: 3, 5.003: 3, 9.007: 2, 11.003: 2, 34.009: 2,
    64.003: 2, 125.007: 1, 301.003: 1, 901.009: 0.5,
}  # fmt: skip
_SETTINGS = {
    "expire_nodest_conn": (0, 1),
    "expire_quiescent_template": (0, 1),
    "conn_reuse_mode": (0, 1, 2),
    "sloppy_tcp": (0, 1),
    "sloppy_sctp": (0, 1),
    "secure_tcp": (0, 1, 3),
    "schedule_icmp": (0, 1),
    "pmtu_disc": (0, 1),
    "drop_packet": (0, 1, 3),
    "drop_entry": (0, 1),
    "cache_bypass": (0, 1),
    "ignore_tunneled": (0, 1),
    "snat_reroute": (0, 1),
}
"""What may be set; not what makes the kernel choose at random (drop_entry 2 and 3)."""


def scenario(profile: str, seed: int, number: int, steps: int = STEPS) -> Scenario:
    """Return one scenario.

    Args:
        profile: one of `PROFILES`.
        seed: of the campaign.
        number: of the scenario in it.
        steps: how many it has.
    """
    dice = Dice(f"{profile}/{seed}/{number}")
    return _Composer(dice, PROFILES[profile]).scenario(f"{profile}_{seed}_{number:04}", steps)


class _Composer:
    """Puts commands, packets and time together."""

    def __init__(self, dice: Dice, profile: Profile) -> None:
        self._dice = dice
        self._profile = profile
        self._mtu = dice.pick((1500, 1500, 1400, 1300)) if profile.odd_packets else 1500
        self._admin = Administration(dice, profile)
        self._traffic = Traffic(dice, profile, self._admin, self._mtu)

    def scenario(self, name: str, steps: int) -> Scenario:
        """Return the scenario."""
        director: Scenario = {"mtu": self._mtu, "marks": self._admin.marks}
        if any(mark["mark"] == 7 for mark in self._admin.marks):
            director["routes"] = [MARKED_ROUTE]
        done = self._settings() + self._admin.begin()
        while len(done) < steps:
            done += self._next()
        return {
            "name": name,
            "description": "invented",
            "director": director,
            "conns_mode": "full",
            "steps": [{"do": do} for do in done[:steps]],
        }

    def _settings(self) -> list[Do]:
        if not self._profile.settings:
            return []
        return [self._setting() for _ in range(self._dice.between(0, 3))]

    def _next(self) -> list[Do]:
        admin = self._admin
        kind = self._dice.weighted(
            {
                "packet": 64,
                "add_server": 7,
                "edit_server": 6,
                "delete_server": 5,
                "sleep": 9,
                "add_service": 2,
                "edit_service": 2.5,
                "delete_service": 1,
                "listing": 2.5,
                "zero": 0.7,
                "timeouts": 0.7,
                "setting": 4 if self._profile.settings else 0,
            }
        )
        if kind == "packet":
            return self._traffic.next()
        if kind == "sleep":
            return [{"op": "sleep", "seconds": self._dice.weighted(_SECONDS)}]
        if kind == "setting":
            return [self._setting()]
        return [getattr(admin, kind)()]

    def _setting(self) -> Do:
        name = self._dice.pick(sorted(_SETTINGS))
        value = self._dice.pick(_SETTINGS[name])
        return {"op": "sysctl", "name": f"net.ipv4.vs.{name}", "value": str(value)}


def main(argv: Sequence[str] | None = None) -> int:
    """Write scenarios into a folder; return the exit status."""
    parser = argparse.ArgumentParser(description="Invent scenarios for ip_vs.")
    parser.add_argument("--profile", default="everything", choices=sorted(PROFILES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path(), help="the folder (default: here)")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.count):
        made = scenario(arguments.profile, arguments.seed, number, arguments.steps)
        path = arguments.out / f"{made['name']}.json"
        path.write_text(json.dumps(made, indent=1) + "\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
