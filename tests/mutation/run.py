#!/usr/bin/env python3
"""Break the code on purpose, one place at a time, and see whether a test notices (mutmut).

    python tests/mutation/run.py [--sample N] [--all] [MODULE ...]

MODULE is a package or module whose functions are changed: `lvskit_sched_rr`, `lvskit.core.timers`;
default: `lvskit.core` and every scheduler. Of each file a seeded sample of N changes is tried (30);
`--all` tries every one, which takes hours. Survivors are shown; fails where fewer than 90 % die.

mutmut makes the changes, and learns which test runs what; `each_change` tries them; `tables` does
both to the state tables, whose every entry is tried. mutmut names what it changes by paths from
where it runs, so it runs in a copy of the checkout (LVSKIT_MUTATION_DIR, by default .mutation) in
which the plugins' packages lie beside `lvskit`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
LEAST = 0.90
# hypothesis takes what mutmut does to each call for a machine that changes its mind; and daemons
# are other processes, of which mutmut learns nothing.
UNFIT = ["--ignore=tests/core/test_director_stateful.py", "-m", "not integration"]
# It works once, when it is imported: before any change is switched on.
TABLES = "lvskit.core.states"
_SURVIVED = 0


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
    statuses = {}
    if modules != [TABLES]:
        # It makes and learns all before it finds that there is nothing of this name to try.
        told = mutmut(scratch, "run", "nothing")
        if not (scratch / "mutants" / "mutmut-stats.json").exists():
            sys.exit(told)
        chosen = changes(scratch, sys.maxsize if given.all else given.sample)
        statuses = attempt(scratch, chosen)
    if {TABLES, "lvskit.core"} & set(modules):
        statuses |= attempt_tables(scratch)
    return report(scratch, statuses)


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
    selection = sorted({str(p.relative_to(scratch)) for m in modules for p in tests(scratch, m)})
    (scratch / "pyproject.toml").write_text(
        (CHECKOUT / "pyproject.toml").read_text()
        + "\n[tool.mutmut]\n"
        + f"source_paths = {json.dumps(roots)}\n"
        + f"only_mutate = {json.dumps([*map(path_of, modules), *map(within, modules)])}\n"
        + f"do_not_mutate = {json.dumps([path_of(TABLES)])}\n"
        + f"also_copy = {json.dumps(['tests', 'plugins'])}\n"
        + f"pytest_add_cli_args = {json.dumps(UNFIT)}\n"
        + f"pytest_add_cli_args_test_selection = {json.dumps(selection)}\n"
    )


def path_of(module: str) -> str:
    """Return where the file of a module is, among the packages."""
    return module.replace(".", "/") + ".py"


def within(module: str) -> str:
    """Return a pattern of the files of a package."""
    return module.replace(".", "/") + "/*"


def tests(scratch: Path, module: str) -> Iterator[Path]:
    """Yield where the tests of a module are: a plugin's beside it, the core's everywhere."""
    package = module.partition(".")[0]
    if package == "lvskit":
        yield scratch / "tests" / "core"
        yield scratch / "tests" / "test_vectors.py"
        yield from scratch.glob("plugins/*/tests")
    else:
        yield scratch / "plugins" / package.removeprefix("lvskit_") / "tests"


def environment(*roots: Path, **more: str) -> dict[str, str]:
    """Return the environment of a run that imports from these directories first."""
    # The same examples for every change, or hypothesis would find by luck what it missed before.
    return os.environ | {"CI": "1", "PYTHONPATH": os.pathsep.join(map(str, roots))} | more


def mutmut(scratch: Path, *arguments: str) -> str:
    """Run mutmut, and return what it prints."""
    command = [sys.executable, "-m", "mutmut.__main__", *arguments]
    done = subprocess.run(
        command, cwd=scratch, env=environment(scratch), capture_output=True, text=True, check=False
    )
    return done.stdout


def changes(scratch: Path, size: int) -> list[str]:
    """Return up to `size` names of changes of each file, the same ones every time."""
    chosen: list[str] = []
    for path in sorted((scratch / "mutants").rglob("*.meta")):
        names = sorted(json.loads(path.read_text())["exit_code_by_key"])
        chosen += random.Random(0).sample(names, min(size, len(names)))
    return chosen


def attempt(scratch: Path, chosen: list[str]) -> dict[str, int]:
    """Return by name of each change the exit status of its tests: 0 where none noticed it."""
    exchange = scratch / "changes.json"
    exchange.write_text(json.dumps(chosen))
    root = scratch / "mutants"
    settings = tomllib.loads((scratch / "pyproject.toml").read_text())["tool"]["mutmut"]
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "each_change", "-p", "no:cacheprovider"),
            *("--rootdir=.", *settings["pytest_add_cli_args"]),
            *settings["pytest_add_cli_args_test_selection"],
        ],
        cwd=root,
        env=environment(root, HERE, LVSKIT_CHANGES=str(exchange)),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return statuses_in(exchange)


def attempt_tables(scratch: Path) -> dict[str, int]:
    """Return the same by each change to the state tables."""
    results = scratch / "tables.json"
    subprocess.run(
        [sys.executable, HERE / "tables.py", path_of(TABLES), results],
        cwd=scratch,
        env=environment(scratch),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return statuses_in(results)


def statuses_in(file: Path) -> dict[str, int]:
    """Return the exit statuses that a run has written."""
    statuses: dict[str, int] = json.loads(file.read_text())
    return statuses


def report(scratch: Path, statuses: dict[str, int]) -> int:
    """Print scores and survivors; return an exit status."""
    by_module: dict[str, list[str]] = {}
    for name in statuses:
        by_module.setdefault(module_of(name), []).append(name)
    survivors = [name for name, status in statuses.items() if status == _SURVIVED]
    print(f"{'module':44} tried  survived  score")
    for module, names in by_module.items():
        alive = sum(statuses[name] == _SURVIVED for name in names)
        print(f"{module:44} {len(names):5}  {alive:8}  {1 - alive / len(names):5.0%}")
    for name in survivors:
        shown = "" if module_of(name) == TABLES else mutmut(scratch, "show", name)
        lines = [line for line in shown.splitlines() if line[:1] in "-+@"]
        print(f"\n{name}", *lines[2:], sep="\n")
    score = 1 - len(survivors) / max(len(statuses), 1)
    print(f"\n{len(statuses)} changes tried, {len(survivors)} survived: {score:.1%} killed")
    return 0 if statuses and score >= LEAST else 1


def module_of(change: str) -> str:
    """Return what a change of this name is in: `package.module.function` or `module line:...`."""
    return change.partition(" ")[0] if " " in change else change.rpartition(".")[0]


if __name__ == "__main__":
    sys.exit(main())
