"""What README.md and docs/ say, done: their Python runs, their scheduler installs and is chosen."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvskit.cli import main

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
PAGES = [README, *sorted((CHECKOUT / "docs").rglob("*.md"))]
PAGES += sorted(CHECKOUT.glob("plugins/*/README.md"))


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """Return the section of a page under `## title`."""
    return re.split(r"^## ", text.split(f"\n## {title}\n", 1)[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_python_in_pages_runs_and_prints_what_they_say(page: Path) -> None:
    """One namespace per page; a `text` block right after a `python` block is what that prints."""
    namespace: dict[str, object] = {"__name__": "page"}
    found = blocks(page.read_text())
    for index, (language, code) in enumerate(found):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page}, block {index}", "exec", dont_inherit=True), namespace)
        following = found[index + 1 : index + 2]
        if following and following[0][0] == "text":
            assert printed.getvalue() == following[0][1]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_two_commands_are_one_line_each() -> None:
    commands = [code for kind, code in blocks(section(README.read_text(), "Try it"))]
    assert commands == ["python3 dev.py demo\n", "python3 dev.py test\n"]


CHOOSE = """
import lvskit
director = lvskit.Director(
    lvskit.load_plugins(strict=True), lambda address: lvskit.Route(bytes([10, 0, 0, 1]), 1500)
)
key = lvskit.ServiceKey.of(lvskit.UDP, bytes([10, 0, 0, 2]), 53)
service = director.add_service(key, lvskit.ServiceSettings(scheduler="fewest_bytes"))
for last in (3, 4):
    director.add_server(key, bytes([10, 0, 0, last]), 53, lvskit.ServerSettings())
for cport, size in ((1024, 500), (1025, 10), (1026, 10)):
    udp = cport.to_bytes(2, "big") + bytes([0, 53]) + (8 + size).to_bytes(2, "big")
    head = bytes([0x45, 0]) + (28 + size).to_bytes(2, "big") + bytes([0, 0, 0x40, 0, 64, 17, 0, 0])
    director.receive(head + bytes([10, 9, 9, 9]) + key.address + udp + bytes(2 + size), 0.0)
print(sorted((server.counters.inpkts, server.counters.inbytes) for server in service.servers))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory, pip) -> dict[str, str]:
    """An environment where the README's scheduler is installed, made of its blocks alone."""
    written = tmp_path_factory.mktemp("written")
    text = section(README.read_text(), "Write a scheduler")
    (module,) = re.findall(r"`(lvskit_sched_\w+\.py)`", text)
    content = dict(reversed(blocks(text)))
    (written / module).write_text(content["python"])
    (written / "pyproject.toml").write_text(content["toml"])
    assert sum(bool(line.strip()) for line in content["python"].splitlines()) <= 10
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", target, written)
    return {**os.environ, "PYTHONPATH": str(target)}


def test_the_readmes_scheduler_installs_and_schedules(environment) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout == "[(1, 528), (2, 76)]\n", "the second server until it had more bytes"


def test_the_readmes_scheduler_is_listed(environment) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lvskit", "plugins", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert {
        "kind": "scheduler",
        "name": "fewest_bytes",
        "distribution": "lvskit-sched-fewest-bytes",
        "version": "0.1.0",
        "summary": "the fewest bytes for its weight",
    } in json.loads(done.stdout)["plugins"]


@pytest.fixture
def lvsadm(tmp_path, environment):
    """Runs lvsadm against a daemon of its own, and returns what it printed."""
    socket = tmp_path / "control.sock"
    known = {**environment, "LVSKIT_SOCKET": str(socket)}
    daemon = subprocess.Popen(
        [sys.executable, "-m", "lvskit", "run", "--datapath", "memory"], env=known
    )

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "lvskit.cli.lvsadm", *arguments],
            env=known,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    deadline = time.monotonic() + 30
    while not socket.exists():
        assert daemon.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield run
    daemon.terminate()
    assert daemon.wait(timeout=30) == 0


def test_the_readmes_scheduler_is_chosen_with_s(lvsadm) -> None:
    lvsadm("-A", "-t", "192.168.1.176:http", "-s", "fewest_bytes")
    lvsadm("-a", "-t", "192.168.1.176:http", "-r", "192.168.1.177", "-i")
    listing = lvsadm("-L", "-n").splitlines()
    assert listing[3] == "TCP  192.168.1.176:80 fewest_bytes"
    assert listing[4].split() == ["->", "192.168.1.177:80", "Tunnel", "1", "0", "0"]


def test_the_tutorial_does_what_it_shows(lvsadm) -> None:
    """Every `# lvsadm …` of the tutorial, with the output that stands under it."""
    page = (CHECKOUT / "docs" / "tutorial" / "index.md").read_text()
    transcript = "".join(code for kind, code in blocks(page) if kind == "text")
    steps = re.findall(r"^# lvsadm(.*)\n((?:[^#].*\n)*)", transcript, flags=re.MULTILINE)
    assert len(steps) >= 12
    for arguments, output in steps:
        assert lvsadm(*arguments.split()) == output, arguments


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield `parser` and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def test_the_reference_names_every_command_and_option() -> None:
    page = (CHECKOUT / "docs" / "reference" / "cli.md").read_text()
    for parser in parsers(main.parser()):
        command = parser.prog.removeprefix("lvskit ")
        assert f"`lvskit {command}" in page or f"## {parser.prog}\n" in page or command == "lvskit"
        for action in parser._actions:
            for option in action.option_strings:
                assert f"`{option}" in page or option in ("-h", "--help", "--version"), option


def test_the_reference_names_every_option_of_lvsadm() -> None:
    page = (CHECKOUT / "docs" / "reference" / "cli.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "lvskit.cli.lvsadm", "-h"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    options = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", done.stdout)) - {"--help"}
    assert [option for option in sorted(options) if f"`{option}" not in page] == []


def test_the_tour_does_what_it_shows(tmp_path) -> None:
    """The listing of README's tour, byte for byte, by the commands before it."""
    (_, start), (_, commands), (_, shown) = blocks(section(README.read_text(), "A tour"))[:3]
    socket = tmp_path / "lvskit.sock"
    script = f"""set -e
{start.replace("/tmp/lvskit.sock", str(socket))}
trap 'kill $!; wait $!' EXIT
until [ -S {socket} ]; do kill -0 $!; sleep 0.02; done
{commands}"""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == shown, done.stderr
