"""The tutorial, step by step: what is done, the command, its output, who answered."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from typing import TextIO

from lvskit.cli.demo.dissect import dissect
from lvskit.cli.demo.stage import CLIENTS, DIRECTOR, NAMES, SERVERS, VIP, Stage

_PORTS = {"telnet": 23, "ssh": 22}
_WEIGHTS = {"rs1": 3, "rs2": 2, "rs3": 1}


class Script:
    """Plays the tutorial on a stage and tells about it on `out`.

    Attributes:
        answered: sessions that each host answered, by name.
        failures: what did not go as it should, one line each.
    """

    def __init__(self, stage: Stage, out: TextIO) -> None:
        self._stage = stage
        self._out = out
        self._step = 0
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []

    def play(self) -> None:
        """Walk through the whole tutorial."""
        self._say(f"The cluster: {self._stage.description}.")
        self._say(f"  director {DIRECTOR}, virtual IP (VIP) {VIP}, real servers " + ", ".join(
            f"{name} {address}" for name, address in SERVERS.items()))  # fmt: skip
        self._title("Make the director serve telnet and ssh: least connections, persistent")
        self._add_services()
        self._run()
        self._title("Clear the set-up, look, and make it again")
        self._run("-C")
        self._run()
        self._add_services()
        self._title("Add the local node: the director answers as a real server, too")
        for service in _PORTS:
            self._run("-a", "-t", f"{VIP}:{service}", "-r", DIRECTOR, "-i", "-w", "3")
        self._run()
        self._session(CLIENTS[0], "telnet")
        self._title("Add the other real servers, each at the end of an IPIP tunnel")
        for service in _PORTS:
            for name, address in SERVERS.items():
                weight = str(_WEIGHTS[name])
                self._run("-a", "-t", f"{VIP}:{service}", "-r", address, "-i", "-w", weight)
        self._run()
        self._title("The first client comes back: persistence keeps it on its server")
        for _ in range(2):
            self._session(CLIENTS[0], "telnet")
        self._title("Other clients come: each new one goes to the least loaded for its weight")
        packet = None
        for client in CLIENTS[1:]:
            for service in _PORTS:
                self._session(client, service)
                packet = self._stage.tunnelled() or packet
        self._title("The connection table: sessions, and a template for each client (port 0)")
        self._run("-L", "-n", "-c")
        self._run("-L", "-n")
        self._title("One of those packets, as its real server got it")
        if packet is None:
            self.failures.append("no packet went through a tunnel")
        else:
            self._say(dissect(packet))
        self._summary()

    def _add_services(self) -> None:
        for service in _PORTS:
            self._run("-A", "-t", f"{VIP}:{service}", "-s", "wlc", "-p")

    def _run(self, *arguments: str) -> None:
        self._say(f"director# {shlex.join(['lvsadm', *arguments])}")
        output = self._stage.lvsadm(*arguments)
        if output:
            self._say(output.rstrip("\n"))
        listing = not arguments or arguments[0] == "-L"
        if bool(output) != listing:
            self.failures.append(f"lvsadm {shlex.join(arguments)}: {output or 'no output'}")

    def _session(self, client: str, service: str) -> None:
        greeting = self._stage.session(client, _PORTS[service])
        name = next((n for n in NAMES.values() if re.search(rf"\b{n}\b", greeting)), None)
        self._say(f"{client}$ {service} {VIP}  ->  {greeting.strip()!r}")
        if name is None:
            self.failures.append(f"{service} from {client}: {greeting!r} names no real server")
        else:
            self.answered[name] += 1

    def _summary(self) -> None:
        self._title("Who answered")
        self._say(f"  {'server':10} {'address':15} {'weight':>6} {'sessions':>8}")
        for address, name in NAMES.items():
            weight = _WEIGHTS.get(name, 3)
            bar = "#" * self.answered[name]
            self._say(f"  {name:10} {address:15} {weight:6} {self.answered[name]:8}  {bar}")
        for failure in self.failures:
            self._say(f"FAILED: {failure}")

    def _title(self, text: str) -> None:
        self._step += 1
        self._say(f"\n== {self._step}. {text}")

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)
