#!/usr/bin/env python3
"""Fuzz every target, guided by coverage (atheris), for a bounded time.

    python tests/fuzz/run.py [--keep] [TARGET ...]

LVSKIT_FUZZ_SECONDS (60) is shared by the targets. An input that makes one fail is printed, and is
left in its corpus, where `pytest tests/fuzz` fails with it until it is mended. `--keep` chooses
the corpus anew: the fewest and smallest inputs that reach all that was reached.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = sorted(path.stem for path in (HERE / "targets").glob("*.py"))
CORPUS = HERE / "corpus"
MOST_BYTES = 8192
MOST_KEPT = 24
FAULTS = ("crash-", "oom-", "timeout-", "slow-unit-")
"""How the names of inputs begin that were faults once: they stay."""
_LIMITS = ("-timeout=20", "-rss_limit_mb=1024", f"-max_len={MOST_BYTES}")


def main(arguments: list[str]) -> int:
    """Fuzz the targets that are named, or all; return an exit status."""
    if arguments[:1] == ["--one"]:
        return fuzz_here(arguments[1], arguments[2:])
    keep = "--keep" in arguments
    chosen = [name for name in arguments if name != "--keep"] or TARGETS
    unknown = sorted(set(chosen) - set(TARGETS))
    if unknown:
        print(f"no such target: {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
        return 2
    seconds = float(os.environ.get("LVSKIT_FUZZ_SECONDS", "60")) / len(chosen)
    failed = [name for name in chosen if not fuzz(name, max(1, round(seconds)), keep=keep)]
    print(f"{len(chosen) - len(failed)} targets without a fault, {len(failed)} with one")
    return 1 if failed else 0


def fuzz(name: str, seconds: int, *, keep: bool) -> bool:
    """Fuzz one target in a process of its own; whether it found no fault."""
    kept = CORPUS / name
    kept.mkdir(exist_ok=True)
    before = set(kept.iterdir())
    with tempfile.TemporaryDirectory(prefix="lvskit-fuzz-") as fresh:
        done = subprocess.run(
            [
                sys.executable, __file__, "--one", name, f"-max_total_time={seconds}",
                f"-artifact_prefix={kept}/", *_LIMITS, fresh, str(kept),
            ],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )  # fmt: skip
        runs = [line for line in done.stdout.splitlines() if line.startswith("Done ")]
        new = sorted(Path(fresh).iterdir())
        print(
            f"{name}: {runs[-1] if runs else 'stopped'}; {len(new)} inputs reached more", flush=True
        )
        if keep and done.returncode == 0:
            choose(name, [*sorted(before), *new])
    if done.returncode == 0:
        return True
    print(done.stdout[-6000:])
    for found in sorted(set(kept.iterdir()) - before):
        print(f"kept as {found.relative_to(HERE.parents[1])}: {found.read_bytes()!r}")
    return False


def fuzz_here(name: str, options: list[str]) -> int:
    """Be the fuzzer's process: it ends by itself."""
    import atheris

    sys.path.append(str(HERE))
    with atheris.instrument_imports(include=["lvskit", *plugins()]):
        check = check_of(name)
    atheris.Setup([sys.argv[0], *options], check)
    atheris.Fuzz()
    return 0


def plugins() -> list[str]:
    """Return the import packages of the bundled plugins."""
    return sorted(path.parent.name for path in HERE.parents[1].glob("plugins/*/src/*/__init__.py"))


def check_of(name: str) -> Callable[[bytes], None]:
    """Return what a target does with an input."""
    check: Callable[[bytes], None] = importlib.import_module(f"targets.{name}").check
    return check


def choose(name: str, candidates: list[Path]) -> None:
    """Leave in the corpus of `name` only what is needed to reach all that `candidates` reach."""
    sys.path.append(str(HERE))
    check = check_of(name)
    small = {path.read_bytes() for path in candidates if not path.name.startswith(FAULTS)}
    inputs = sorted(small, key=lambda data: (len(data), data))
    reached = {data: reach(check, data) for data in inputs}
    wanted = set().union(*reached.values())
    chosen: list[bytes] = []
    while wanted and len(chosen) < MOST_KEPT:
        best = max(inputs, key=lambda data: len(reached[data] & wanted))
        chosen.append(best)
        wanted -= reached[best]
    for path in (CORPUS / name).iterdir():
        if not path.name.startswith(FAULTS):
            path.unlink()
    for number, data in enumerate(chosen):
        (CORPUS / name / f"{number:02}").write_bytes(data)
    print(f"{name}: {len(chosen)} of {len(inputs)} inputs kept")


def reach(check: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """Return the branches of our own code that an input takes."""
    import coverage

    measured = coverage.Coverage(
        data_file=None, branch=True, source_pkgs=["lvskit", *plugins()], config_file=False
    )
    # Imported already, or not at all by this target.
    quiet = ["module-not-measured", "module-not-imported", "no-data-collected"]
    measured.set_option("run:disable_warnings", quiet)
    with measured.collect():
        check(data)
    found = measured.get_data()
    return {(file, *arc) for file in found.measured_files() for arc in found.arcs(file) or ()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
