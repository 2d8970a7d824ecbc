#!/usr/bin/env python3
"""Set up this checkout and run it: the only requirements are Python 3.11 or newer and git.

    python3 dev.py demo     make .venv, install lvskit and the bundled plugins, run `lvskit demo`
    python3 dev.py test     make .venv, install tox, run every check (more arguments go to tox)
    python3 dev.py lvskit …, python3 dev.py lvsadm …     run that command of the checkout

What was set up stays in .venv; a second run starts at once.
"""

import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from shutil import which

if sys.version_info < (3, 11):  # noqa: UP036 - the reader may well have an older one
    sys.exit(f"lvskit needs Python 3.11 or newer; this is {sys.version.split()[0]}")

import tomllib

TOP = Path(__file__).resolve().parent
VENV = TOP / ".venv"
PYTHON = VENV / "bin" / "python"
PLUGINS = sorted(path.parent for path in TOP.glob("plugins/*/pyproject.toml"))


def main(arguments: list[str]) -> int:
    """Run one of the commands above and return its exit status."""
    command, *rest = arguments or ["help"]
    if command == "test":
        project = tomllib.loads((TOP / "pyproject.toml").read_text())
        install("tox", project["dependency-groups"]["runner"])
        return run("tox", "run", *rest)
    if command in ("demo", "lvskit", "lvsadm"):
        paths = (f"{TOP}[top]", *PLUGINS)
        checkout = [word for path in paths for word in ("--editable", str(path))]
        install("lvskit", checkout)
        return run("lvskit", "demo", *rest) if command == "demo" else run(command, *rest)
    print(__doc__)
    return 0 if command in ("help", "-h", "--help") else 2


def run(command: str, *arguments: str) -> int:
    """Run a command that is installed in .venv."""
    return subprocess.call([VENV / "bin" / command, *arguments], cwd=TOP)


def install(name: str, requirements: list[str]) -> None:
    """Install `requirements` into .venv, unless that was done since any of them last changed."""
    stamp = VENV / f".installed-{name}"
    projects = [path / "pyproject.toml" for path in (TOP, *PLUGINS)]
    wanted = "\n".join([sys.version, *requirements, *(path.read_text() for path in projects)])
    if stamp.exists() and stamp.read_text() == wanted and (VENV / "bin" / name).exists():
        return
    installer = make_venv()
    print(f"installing {name} into {VENV.relative_to(TOP)} …", flush=True)
    if subprocess.call([*installer, *requirements], cwd=TOP):
        sys.exit(f"installing {name} failed; what pip said is above")
    stamp.write_text(wanted)


def make_venv() -> list[str]:
    """Make .venv where there is none; return the command that installs into it."""
    uv = which("uv")
    pip = find_spec("ensurepip") is not None
    if not PYTHON.exists():
        if not (uv or pip or find_spec("pip")):
            sys.exit(
                "this Python comes without the parts that make virtual environments;\n"
                "on Debian and Ubuntu: apt install python3-venv, then run this again"
            )
        print(f"making {VENV.relative_to(TOP)} with Python {sys.version.split()[0]} …", flush=True)
        venv.create(VENV, with_pip=pip)
    options = ["install", "--quiet"]
    if next(VENV.glob("lib/*/site-packages/pip"), None):
        return [str(PYTHON), "-m", "pip", *options, "--disable-pip-version-check"]
    if find_spec("pip"):  # an older pip on the machine can install into another environment
        return [sys.executable, "-m", "pip", "--python", str(PYTHON), *options]
    if uv:
        return [uv, "pip", *options, "--python", str(PYTHON)]
    sys.exit(f"{VENV} has no pip; remove it and run this again")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
