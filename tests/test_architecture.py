"""The promises about the shape of the code: floors, a core without I/O, sizes, public names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lvskit

CHECKOUT = Path(__file__).parents[1]
CORE = CHECKOUT / "lvskit" / "core"
MODULES = sorted((CHECKOUT / "lvskit").rglob("*.py"))
PLUGIN_MODULES = sorted(CHECKOUT.glob("plugins/*/src/**/*.py"))

# From the ground up. `lvskit` alone is the package itself, with the public names.
FLOORS = [
    ["lvskit.types", "lvskit.errors", "lvskit.checksums"],
    ["lvskit.interfaces", "lvskit.refusals", "lvskit.estimator", "lvskit.settings"],
    ["lvskit.records"],
    ["lvskit.hookspecs"],
    ["lvskit.core"],
    ["lvskit.plugins", "lvskit.datapath"],
    ["lvskit.hostsetup"],
    ["lvskit"],
    ["lvskit.config"],
    ["lvskit.control"],
    ["lvskit.lab", "lvskit.testing.wire"],
    ["lvskit.cli"],
    ["lvskit.__main__", "lvskit.testing"],  # testing drives all of it, the commands too
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}


def module_of(path: Path) -> str:
    """Return the dotted name of the module in `path`."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return which of the parts in `FLOORS` a module belongs to: the nearest one around it."""
    part = module
    while part not in HEIGHT and part != "lvskit":
        part = part.rpartition(".")[0]
    assert part != "lvskit" or module == part, f"{module} has no floor"
    return part


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that `path` imports, wherever in it; names of `lvskit` with theirs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in HEIGHT else node.module


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    here = part_of(module_of(path))
    for name in imports(path):
        if name.split(".")[0] == "lvskit" and part_of(name) != here:
            assert HEIGHT[part_of(name)] < HEIGHT[here], f"{here} imports {name}"


FORBIDDEN = {"pluggy", "time", "socket", "random", "threading", "asyncio", "os", "logging"}


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=module_of)
def test_the_core_does_no_io(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path)}
    assert not found & FORBIDDEN
    assert ".hook." not in path.read_text()
    assert "hash(" not in path.read_text().replace("__hash__(", ""), "differs per process"


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_core_stays_small() -> None:
    assert sum(map(lines, CORE.glob("*.py"))) <= 2500


@pytest.mark.parametrize("path", [*MODULES, *PLUGIN_MODULES], ids=lambda p: p.stem)
def test_no_file_is_long(path: Path) -> None:
    assert lines(path) <= 350


@pytest.mark.parametrize("path", PLUGIN_MODULES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_plugins_use_public_names_only(path: Path) -> None:
    own = next(part for part in path.parts if part.startswith("lvskit_"))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name == "lvskit" or not alias.name.startswith("lvskit.")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lvskit"):
            assert node.module is not None
            if node.module.split(".")[0] != own:
                assert node.module == "lvskit"
                assert {alias.name for alias in node.names} <= set(lvskit.__all__)


def loaded_by(*arguments: str) -> set[str]:
    """Return the modules that `python ARGUMENTS` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {row.rsplit("|", 1)[1].strip() for row in rows}


HEAVY = {"scapy", "pyroute2", "textual", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "lvskit.cli.lvsadm", "-h"),
        ("-m", "lvskit", "--help"),
        ("-c", "import lvskit; lvskit.load_plugins(strict=True)"),
    ],
    ids=["lvsadm", "lvskit", "load_plugins"],
)
def test_commands_start_without_heavy_modules(arguments: tuple[str, ...]) -> None:
    loaded = {name.split(".")[0] for name in loaded_by(*arguments)}
    assert "lvskit" in loaded
    assert not loaded & HEAVY


def test_every_distribution_carries_the_licence() -> None:
    licence = (CHECKOUT / "LICENSE").read_text()
    projects = [path.parent for path in CHECKOUT.glob("plugins/*/pyproject.toml")]
    assert projects
    for project in projects:
        assert (project / "LICENSE").read_text() == licence
        assert next(project.glob("src/*/py.typed")).exists()


def test_the_bootstrap_stays_short() -> None:
    assert lines(CHECKOUT / "dev.py") < 100
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)
