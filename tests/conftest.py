"""What all tests share: how hypothesis runs, and real distributions to install."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# `ci` gives every run the same examples, so that a failure is the change's and not the day's.
hypothesis.settings.register_profile("ci", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

DISTRIBUTIONS = Path(__file__).parent / "data" / "plugins"


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Let programs that tests start hear SIGINT: in a background job pytest is deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def pip() -> Callable[..., None]:
    """Runs pip with only what is on this machine: no network, no build environment."""

    def run(command: str, *arguments: str | Path) -> None:
        options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
        building = ["--no-build-isolation"]
        subprocess.run(
            [sys.executable, "-m", "pip", command, *options, *building, *map(str, arguments)],
            check=True,
        )

    return run


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory, pip: Callable[..., None]) -> Path:
    """A directory with a wheel of each distribution in tests/data/plugins."""
    directory = tmp_path_factory.mktemp("wheels")
    pip("wheel", "--wheel-dir", directory, *sorted(DISTRIBUTIONS.iterdir()))
    return directory


@pytest.fixture(scope="session")
def installed(
    tmp_path_factory: pytest.TempPathFactory, pip: Callable[..., None], wheels: Path
) -> Callable[[str], Path]:
    """Installs one of these distributions by its name, and returns the directory it is in."""
    done: dict[str, Path] = {}

    def install(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            (wheel,) = wheels.glob(f"lvskit_{name.replace('-', '_')}-*.whl")
            pip("install", "--target", done[name], wheel)
        return done[name]

    return install
