"""The tutorial's transcript, recorded on the real kernel, line by line on lvskit.

Only what cannot be the same is made the same first: client ports are replaced by their order of
opening, and seconds left may differ by the two that the recording took.
"""

from __future__ import annotations

import io
import ipaddress
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvskit import Director, load_plugins
from lvskit.cli import lvsadm
from lvskit.control.api import Control
from lvskit.datapath.memory import ClientHost, DirectorHost, Network, RealServerHost, Services
from lvskit.datapath.memory.server import Session

TRANSCRIPT = Path(__file__).parent / "vectors" / "tutorial-transcript.txt"
SERVERS = {"rs1": "192.168.1.11", "rs2": "192.168.1.12", "rs3": "192.168.1.13"}
VIP = "192.168.1.176"
PORTS = (22, 23)


class Cluster:
    """The transcript's hosts on the memory datapath."""

    def __init__(self) -> None:
        self.network = Network()
        host = DirectorHost(
            self.network, ["192.168.1.175/24", f"{VIP}/32"], services=_services("director")
        )
        for name, address in SERVERS.items():
            RealServerHost(self.network, [f"{address}/24"], [VIP], _services(name))
        self.client = ClientHost(self.network, ["192.168.1.50/24"])
        plugins = load_plugins(strict=True)
        host.director = Director(plugins, host.routes, size=4096)
        self.control = Control(host.director, plugins, lambda: self.network.now)
        self.open: list[Session] = []

    def lvsadm(self, arguments: list[str]) -> str:
        output = io.StringIO()
        lvsadm.run(
            arguments,
            client=lambda: self.control,
            stdin=io.StringIO(),
            stdout=output,
            stderr=output,
            prog="ipvsadm",
            names=lvsadm.Names(hosts={}),
        )
        return output.getvalue()

    def sessions(self, count: int, port: int) -> list[str]:
        """Open sessions; return who answered each."""
        opened = [self.client.connect(ipaddress.ip_address(VIP).packed, port) for _ in range(count)]
        self.open += opened
        return [bytes(session.received).decode() for session in opened]

    def close_all(self) -> None:
        for session in self.open:
            self.client.close(session)
        self.open.clear()


def _services(name: str) -> Services:
    return Services(dict.fromkeys(PORTS, name.encode()))


def _blocks() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (host, command, output lines) for each prompt of the transcript."""
    prompt = re.compile(r"(\w+)# (.*)")
    host, command, output = "", "", []
    for line in TRANSCRIPT.read_text().splitlines():
        found = prompt.fullmatch(line)
        if not found:
            output.append(line)
            continue
        if host:
            yield host, command, output
        host, command, output = found[1], found[2], []
    yield host, command, output


def _comparable(lines: list[str]) -> list[str]:
    """Return lines without what the client's TCP options, its ports and the hour decide.

    Connection listings lose ports and seconds, and get a fixed order; statistics, which depend on
    the size of the client's packets and on the two-second grid, lose their figures.
    """
    if any("InPkts" in line or "InPPS" in line for line in lines):
        return [re.sub(r"(?: +\d+){5}$", " #", line) for line in lines]
    if not lines or lines[0] != "IPVS connection entries":
        return lines
    entries = []
    for line in lines[2:]:
        words = line.split()
        words[1] = words[1][:2] if int(words[1][3:]) >= 58 else f"{int(words[1][:2]) - 1:02}"
        words[3] = re.sub(r":[1-9]\d*", ":port", words[3])
        entries.append(" ".join(words))
    return [*lines[:2], *sorted(entries)]


def test_the_transcript_line_by_line() -> None:
    cluster = Cluster()
    for host, command, expected in _blocks():
        if host == "director" and command.startswith("sh -c"):
            continue  # reads the kernel's own files in /proc
        if host == "director":
            output = cluster.lvsadm(shlex.split(command)[1:]).splitlines()
            assert _comparable(output) == _comparable(expected), command
        elif opening := re.search(r"open (\d+) sessions to [\d.]+:(\d+), (\w+)", command):
            answers = cluster.sessions(int(opening[1]), int(opening[2]))
            if not cluster.control.director.services.counters.conns and not expected:
                continue
            assert answers == command.rpartition("answered by: ")[2].split(), command
            if opening[3] == "close":
                cluster.close_all()
        elif "close all sessions" in command:
            cluster.close_all()
        else:
            pytest.fail(f"the transcript has a line that this test does not know: {command}")
