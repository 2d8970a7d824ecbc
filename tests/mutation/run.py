#!/usr/bin/env python3
"""Break the code on purpose, one place at a time, and see whether a test notices (mutmut).

    python tests/mutation/run.py [--sample N] [--all] [MODULE ...]

MODULE is a package or module whose functions are changed: `lvskit_sched_rr`, `lvskit.core.timers`;
default: `lvskit.core` and every scheduler. Of each file a seeded sample of N changes is tried (30);
`--all` tries every one, which takes hours. Survivors are shown; fails where fewer than 90 % die.

mutmut names what it changes by paths from where it runs, so it runs in a copy of the checkout
(LVSKIT_MUTATION_DIR, by default .mutation) in which the plugins' packages lie beside `lvskit`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
LEAST = 0.90
# hypothesis takes what mutmut does to each call for a machine that changes its mind.
UNFIT = ("tests/core/test_director_stateful.py",)
# Its functions run once, when it is imported: before any change is switched on.
EARLY = ("lvskit/core/states.py",)
_SURVIVED = 0
_UNTESTED = (33, 5)
_COMMAND = (sys.executable, "-m", "mutmut.__main__")


def main() -> int:
    """Try the changes, and return an exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=30, metavar="N", help="changes per file")
    parser.add_argument("--all", action="store_true", help="every change")
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    given = parser.parse_args()
    scratch = Path(os.environ.get("LVSKIT_MUTATION_DIR", CHECKOUT / ".mutation"))
    modules = given.modules or ["lvskit.core", *sorted(p.name for p in packages("sched_*"))]
    prepare(scratch, modules)
    if given.all:
        mutmut(scratch)
    else:
        mutmut(scratch, "nothing")  # makes the changes, and learns which test runs what
        mutmut(scratch, *sample(scratch, given.sample))
    return report(scratch)


def packages(distribution: str) -> Iterator[Path]:
    """Yield the directories of the import packages of some distributions under plugins/."""
    return CHECKOUT.glob(f"plugins/{distribution}/src/lvskit_*")


def prepare(scratch: Path, modules: list[str]) -> None:
    """Copy what is needed to `scratch`, and configure mutmut there."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", ".venv", "corpus")
    for name in ("lvskit", "tests", "plugins"):
        shutil.copytree(CHECKOUT / name, scratch / name, ignore=ignore)
    roots = ["lvskit"]
    for package in packages("*"):
        shutil.copytree(package, scratch / package.name, ignore=ignore)
        roots.append(package.name)
    files = [name.replace(".", "/") for name in modules]
    selection = sorted({str(p.relative_to(scratch)) for m in modules for p in tests(scratch, m)})
    (scratch / "pyproject.toml").write_text(
        (CHECKOUT / "pyproject.toml").read_text()
        + "\n[tool.mutmut]\n"
        + f"source_paths = {json.dumps(roots)}\n"
        + f"only_mutate = {json.dumps([f'{f}.py' for f in files] + [f'{f}/*' for f in files])}\n"
        + f"do_not_mutate = {json.dumps(EARLY)}\n"
        + f"also_copy = {json.dumps(['tests', 'plugins'])}\n"
        + f"pytest_add_cli_args = {json.dumps([f'--ignore={path}' for path in UNFIT])}\n"
        + f"pytest_add_cli_args_test_selection = {json.dumps(selection)}\n"
    )


def tests(scratch: Path, module: str) -> Iterator[Path]:
    """Yield where the tests of a module are: a plugin's beside it, the core's everywhere."""
    package = module.partition(".")[0]
    if package == "lvskit":
        yield scratch / "tests" / "core"
        yield scratch / "tests" / "test_vectors.py"
        yield from scratch.glob("plugins/*/tests")
    else:
        yield scratch / "plugins" / package.removeprefix("lvskit_") / "tests"


def mutmut(scratch: Path, *names: str) -> None:
    """Run mutmut on the changes of these names, or on all."""
    # The same examples for every change, or hypothesis would find by luck what it missed before.
    environment = os.environ | {"CI": "1", "PYTHONPATH": str(scratch)}
    subprocess.run([*_COMMAND, "run", *names], cwd=scratch, env=environment, check=False)


def changes(scratch: Path) -> dict[str, dict[str, int | None]]:
    """Return the exit status of the tests by the name of each change, by file."""
    root = scratch / "mutants"
    return {
        str(path.relative_to(root)).removesuffix(".meta"): json.loads(path.read_text())[
            "exit_code_by_key"
        ]
        for path in sorted(root.rglob("*.meta"))
    }


def sample(scratch: Path, size: int) -> list[str]:
    """Return up to `size` names of changes of each file, the same ones every time."""
    chosen: list[str] = []
    for statuses in changes(scratch).values():
        names = sorted(statuses)
        chosen += random.Random(0).sample(names, min(size, len(names)))
    return chosen


def report(scratch: Path) -> int:
    """Print scores and survivors; return an exit status."""
    tried_in_all = survived_in_all = 0
    survivors = []
    print(f"\n{'file':44} tried  survived  score")
    for file, statuses in changes(scratch).items():
        tried = {name: status for name, status in statuses.items() if status is not None}
        alive = [n for n, status in tried.items() if status == _SURVIVED or status in _UNTESTED]
        tried_in_all += len(tried)
        survived_in_all += len(alive)
        survivors += alive
        if tried:
            print(f"{file:44} {len(tried):5}  {len(alive):8}  {1 - len(alive) / len(tried):5.0%}")
    for name in survivors:
        shown = subprocess.run(
            [*_COMMAND, "show", name], cwd=scratch, capture_output=True, text=True, check=False
        )
        lines = [line for line in shown.stdout.splitlines() if line[:1] in "-+@"]
        print(f"\n{name}", *lines[2:], sep="\n")
    score = 1 - survived_in_all / max(tried_in_all, 1)
    print(f"\n{tried_in_all} changes tried, {survived_in_all} survived: {score:.1%} killed")
    return 0 if tried_in_all and score >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
