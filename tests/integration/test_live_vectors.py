"""The recordings of the real kernel, replayed on the live datapath in a network namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lvskit import load_plugins
from lvskit.testing.vectors import find, load, run_scenario

pytestmark = pytest.mark.integration
VECTORS = Path(__file__).parents[1] / "vectors"
PLUGINS = load_plugins(strict=True)
UNSEEN = {
    "diff_revived_by_reset": "of the host's own resets the director hears for local servers alone",
    "sctp_edges": "packets to a port that no service claims stay in the host's stack",
}
"""Recordings in which the live datapath differs by what it is, and why."""


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"network namespaces cannot be made here: {probe.stderr.strip()}")


def _cases() -> list[object]:
    return [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.xfail(reason=UNSEEN[path.stem], strict=True)]
            if path.stem in UNSEEN
            else [],
        )
        for path in find([VECTORS])
        if not path.stem.startswith(("cli_", "lvsadm_"))  # no packets: the memory datapath's
    ]


@pytest.mark.parametrize("path", _cases())
def test_live_vector(path: Path) -> None:
    scenario = load(path)
    outcome = run_scenario(scenario, PLUGINS, "live")
    if outcome.kind == "skipped":
        pytest.skip(outcome.detail)
    if outcome.kind == "failed" and run_scenario(scenario, PLUGINS).detail == outcome.detail:
        pytest.xfail(f"not the datapath's affair: {outcome.detail}")
    assert outcome.kind == "passed", outcome.detail


def test_the_wire_is_a_real_one(tmp_path: Path) -> None:
    # A recording with one byte changed fails, by the command, and leaves no namespace behind.
    text = (VECTORS / "tcp_lifecycle.json").read_text()
    (tmp_path / "wrong.json").write_text(text.replace('"next_hop": "x.12"', '"next_hop": "x.13"'))
    before = Path("/proc/self/ns/net").readlink()
    done = subprocess.run(
        [sys.executable, "-m", "lvskit.testing.vectors", "--datapath", "live", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "expected 'x.13', got 'x.12'" in done.stdout
    assert Path("/proc/self/ns/net").readlink() == before


def test_without_privileges_it_says_what_is_missing() -> None:
    command = [sys.executable, "-m", "lvskit.testing.vectors", "--datapath", "live"]
    done = subprocess.run(
        ["unshare", "-U", *command, VECTORS / "udp_basic.json"], capture_output=True, text=True
    )
    if "unshare:" in done.stderr:
        pytest.skip(f"user namespaces cannot be made here: {done.stderr.strip()}")
    assert done.returncode == 2
    assert "run it as root, or in `unshare -Urn`" in done.stderr
    assert "Traceback" not in done.stderr
