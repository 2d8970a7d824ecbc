"""Makes `live_network` importable, and its hosts and directors fixtures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lvskit import Director
from lvskit.datapath.live import LiveOptions
from lvskit.plugins import Plugins

sys.path.append(str(Path(__file__).parent))

from live_network import Network, Running


@pytest.fixture
def network() -> Iterator[Network]:
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"network namespaces cannot be made here: {probe.stderr.strip()}")
    made = Network()
    yield made
    made.close()


@pytest.fixture
def direct(network: Network) -> Iterator[Callable[..., Running]]:
    """Starts directors, and stops them in the end."""
    started: list[Running] = []

    def start(
        services: Callable[[Director], None], plugins: Plugins | None = None, **options: Any
    ) -> Running:
        running = Running(network.director, LiveOptions(**options), plugins)
        running.start(services)
        started.append(running)
        return running

    yield start
    for each in started:
        each.stop()
