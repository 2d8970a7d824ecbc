"""`lvskit run --datapath xdp` as a process of its own, to be killed in the middle of its work."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from xdp_network import PORT, SERVERS, VIP, Network, until

from lvskit.config import toml
from lvskit.config.model import Config
from lvskit.control.client import connect

BIN = Path(sys.executable).parent


def service(vip: str = VIP, protocol: str = "tcp", **settings: Any) -> dict[str, Any]:
    """Return a service with both servers, as a configuration has it."""
    servers = [{"address": address} for address in SERVERS]
    host = f"[{vip}]" if ":" in vip else vip
    return {protocol: f"{host}:{PORT}", "scheduler": "rr", "server": servers, **settings}


class Daemon:
    """A daemon on the director's host.

    Args:
        network: the hosts.
        pins: where it pins.
        services: what it directs.
        arguments: more of the command line.
        prefix: a command that runs it.
        options: of the datapath.
    """

    def __init__(
        self,
        network: Network,
        pins: Path | None,
        services: list[dict[str, Any]],
        *arguments: str,
        prefix: tuple[str, ...] = (),
        place: Path | None = None,
        **options: Any,
    ) -> None:
        place = place or network.place
        config, self.log, self.socket = place / "lvskit.toml", place / "log", place / "control"
        given = {"interface": "eth0", **options}
        if pins is not None:
            given["pins"] = str(pins)
        director = {"datapath": "xdp", "datapath_options": given, "socket": str(self.socket)}
        whole = msgspec.convert({"director": director, "service": services}, Config)
        config.write_text(toml.dumps(whole))
        with self.log.open("w") as stream:
            self.process = network.director.start(
                *prefix, str(BIN / "lvskit"), "run", str(config), *arguments, stderr=stream
            )

    def ready(self) -> Daemon:
        """Wait until it is."""
        until(lambda: "ready" in self.log.read_text() or self.process.poll() is not None, 20)
        assert self.process.poll() is None, self.log.read_text()
        time.sleep(0.3)  # for the hardware addresses of servers
        return self

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(10) == -signal.SIGKILL

    def stop(self) -> str:
        """End it as an operator does; return its log."""
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()
        return self.log.read_text()

    def refused(self) -> str:
        """Wait until it has ended by itself; return its log."""
        assert self.process.wait(20) == 1, self.log.read_text()
        return self.log.read_text()

    def call(self, method: str, **params: Any) -> Any:
        """Carry out a command."""
        with connect(str(self.socket)) as client:
            return client.call(method, params)

    def servers(self, number: int = 0) -> dict[str, dict[str, Any]]:
        """Return what a listing says of a service's servers, by address."""
        found = self.call("status")["services"][number]["servers"]
        return {each["config"]["address"].rpartition(":")[0]: each for each in found}

    def active(self) -> list[int]:
        return sorted(each.get("active", 0) for each in self.servers().values())

    def connections(self) -> dict[str, dict[str, Any]]:
        """Return the entries of the table by client."""
        return {each["client"]: each for each in self.call("connections")}


def program_on(network: Network) -> str:
    """Return the number of the program on the director's interface; nothing where none is."""
    found = re.search(r"prog/xdp id (\d+)", network.director.run("ip -d link show eth0"))
    return found[1] if found else ""


def capabilities(process: subprocess.Popen[str]) -> int:
    """Return the capabilities that a process has in effect."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16)
