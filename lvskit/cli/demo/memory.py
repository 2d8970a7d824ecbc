"""The demo's cluster on the memory datapath: no privileges, everything in this process."""

from __future__ import annotations

import io
import ipaddress

from lvskit.cli import lvsadm
from lvskit.cli.demo.stage import CLIENTS, DIRECTOR, SERVERS, VIP
from lvskit.control.api import Control
from lvskit.core.director import Director
from lvskit.datapath.memory import ClientHost, DirectorHost, Network, RealServerHost, Services
from lvskit.plugins import load_plugins

_IPIP = 4


class _Recorder(RealServerHost):
    """A real server that keeps the last tunnelled packet it got."""

    last: bytes | None = None

    def deliver(self, packet: bytes) -> None:
        """Keep `packet` if it is a tunnel's, and go on."""
        if packet[9] == _IPIP:
            self.last = packet
        super().deliver(packet)


class MemoryStage:
    """A simulated cluster; the packets are real, the wire is a queue."""

    description = "simulated hosts on the memory datapath, in this process"

    def __init__(self) -> None:
        self._network = Network()
        self._director_host = DirectorHost(
            self._network, [f"{DIRECTOR}/24", f"{VIP}/32"], services=_services("director")
        )
        plugins = load_plugins()
        director = Director(plugins, self._director_host.routes)
        self._director_host.director = director
        self._control = Control(director, plugins, lambda: self._network.now)
        self._servers = [
            _Recorder(self._network, [f"{address}/24"], [VIP], _services(name))
            for name, address in SERVERS.items()
        ]
        self._clients = {
            address: ClientHost(self._network, [f"{address}/24"]) for address in CLIENTS
        }

    def lvsadm(self, *arguments: str) -> str:
        """Run lvsadm against the simulated director."""
        output = io.StringIO()
        lvsadm.run(
            arguments,
            client=lambda: self._control,
            stdin=io.StringIO(),
            stdout=output,
            stderr=output,
            names=lvsadm.Names(hosts={}),
        )
        return output.getvalue()

    def session(self, client: str, port: int) -> str:
        """Open, read and close a session; a second passes."""
        host = self._clients[client]
        for server in self._servers:
            server.last = None
        session = host.connect(ipaddress.ip_address(VIP).packed, port)
        host.close(session)
        self._network.advance(1.0)
        lines = bytes(session.received).decode(errors="replace").splitlines()
        return lines[0] if lines else "nobody"

    def tunnelled(self) -> bytes | None:
        """Return the last packet that a simulated server got in its tunnel."""
        return next((server.last for server in self._servers if server.last), None)

    def close(self) -> None:
        """Do nothing: it is all memory."""


def _services(name: str) -> Services:
    return Services({23: f"{name} login: \r\n".encode(), 22: f"SSH-2.0-lvskit {name}\r\n".encode()})
