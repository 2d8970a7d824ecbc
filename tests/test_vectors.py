"""The recordings of the real kernel, replayed on the memory datapath."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lvskit import load_plugins
from lvskit.testing.vectors import find, load, run_scenario
from lvskit.testing.wire import Tree

VECTORS = Path(__file__).parent / "vectors"
PLUGINS = load_plugins(strict=True)
PENDING: dict[str, str] = {}
"""Recordings that are known to differ, and why; one that agrees must leave this list."""


def _cases() -> list[object]:
    return [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.xfail(reason=PENDING[path.stem], strict=True)]
            if path.stem in PENDING
            else [],
        )
        for path in find([VECTORS])
    ]


@pytest.mark.parametrize("path", _cases())
def test_vector(path: Path) -> None:
    outcome = run_scenario(load(path), PLUGINS)
    if outcome.kind == "skipped":
        pytest.skip(outcome.detail)
    assert outcome.kind == "passed", outcome.detail


def test_what_a_director_lacks_is_left_out_step_by_step_and_said() -> None:
    outcome = run_scenario(load(VECTORS / "cli_errors.json"), PLUGINS)
    assert outcome.kind == "passed"
    steps = {int(line.split()[1][:-1]): line.partition(": ")[2] for line in outcome.left_out}
    assert steps == {59: "the persistence engine sip"} | dict.fromkeys(
        (150, 152, 153, 154, 155, 156, 157), "connection synchronization"
    )


def test_the_command_prints_what_differs_and_the_totals(tmp_path: Path) -> None:
    wrong = (VECTORS / "cli_empty.json").read_text().replace("900 120 300", "900 120 301")
    (tmp_path / "wrong.json").write_text(wrong)
    done = subprocess.run(
        [sys.executable, "-m", "lvskit.testing.vectors", str(VECTORS / "cli_empty.json"), tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("failed: cli_empty: step 16 (ipvsadm -L --timeout): stdout:")
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"


def _settings_recording() -> Tree:
    """Return the recording of settings without the one that needs a forwarding method."""
    scenario = load(VECTORS / "sysctl_defaults.json")
    cache_bypass = "net.ipv4.vs.cache_bypass"
    steps = [step for step in scenario["steps"] if step["do"].get("name") != cache_bypass]
    return {**scenario, "steps": steps}


def test_settings_read_as_the_kernels_do() -> None:
    outcome = run_scenario(_settings_recording(), PLUGINS)
    assert outcome.kind == "passed", outcome.detail


@pytest.mark.parametrize(
    ("index", "path", "value"),
    [
        (0, ("values", "drop_entry"), "1"),
        (1, ("reads",), "10"),
        (8, ("reads",), "10"),
        (0, ("values", "a_new_one"), "0"),
    ],
)
def test_settings_that_read_otherwise_are_told(
    index: int, path: tuple[str, ...], value: str
) -> None:
    scenario = _settings_recording()
    at = scenario["steps"][index]["expect"]
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    outcome = run_scenario(scenario, PLUGINS)
    assert (outcome.kind, outcome.step) == ("failed", scenario["steps"][index]["n"])
    assert f"expected {value}, got" in outcome.detail
