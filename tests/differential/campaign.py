"""Compare lvskit with the living kernel, at length: ``python tests/differential/campaign.py``.

The environment variable LVSKIT_ORACLE_ASK names the program that asks the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from compare import ASK, Result, Scenario, compare_all, recorded
from generate import STEPS, scenario
from profiles import PROFILES
from shrink import shrink

from lvskit import load_plugins


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign; return the exit status: 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="everything", choices=sorted(PROFILES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first scenario")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=40, help="how many to ask about at once")
    parser.add_argument("--keep", type=Path, help="a folder for what differs")
    parser.add_argument("--shrink", type=int, default=0, metavar="N", help="the first N of them")
    arguments = parser.parse_args(argv)
    if not os.environ.get(ASK):
        parser.error(f"{ASK} must name the program that asks the kernel")
    plugins = load_plugins(strict=True)
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    shrunk = 0
    begun = time.monotonic()
    numbers = range(arguments.first, arguments.first + arguments.count)
    for start in range(0, len(numbers), arguments.batch):
        batch = [
            scenario(arguments.profile, arguments.seed, number, arguments.steps)
            for number in numbers[start : start + arguments.batch]
        ]
        for result, answer in compare_all(batch, plugins):
            totals[result.kind] += 1
            if result.kind == "skipped":
                reasons[result.detail.partition(": ")[2] or result.detail] += 1
            if result.kind != "differs":
                continue
            found = (result, answer)
            if shrunk < arguments.shrink:
                shrunk += 1
                found = shrink(answer, result, lambda some: compare_all(some, plugins))
            _report(*found, arguments.keep)
        so_far = ", ".join(f"{count} {kind}" for kind, count in sorted(totals.items()))
        print(f"{sum(totals.values())} of {len(numbers)}: {so_far}", flush=True)
    for reason, count in reasons.most_common(10):
        print(f"skipped {count}: {reason}")
    seconds = time.monotonic() - begun
    print(f"profile {arguments.profile}, seed {arguments.seed}: {dict(totals)} in {seconds:.0f} s")
    return 1 if totals["differs"] or totals["unanswered"] else 0


def _report(result: Result, answer: Scenario, folder: Path | None) -> None:
    """Print a difference, and keep its scenario."""
    steps = len(answer["steps"])
    print(f"differs: {result.name}, step {result.step} of {steps}: {result.detail}", flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{result.name}.json").write_text(json.dumps(recorded(answer), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
