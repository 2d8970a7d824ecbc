"""First packets of very many clients, faster than Python takes them, and what comes of them."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from lvskit_datapath_xdp.frames import FrameSender
from xdp_network import PORT, VIP, Host, Network, until

from lvskit.datapath.memory import stack

_ADDRESSES = 34  # bytes: Ethernet and IPv4
# What a file begins with, and each frame in it: pcap-savefile(5).
_FILE, _FRAME = struct.Struct("=IHHiIII"), struct.Struct("=IIII")


def hardware_address(host: Host) -> bytes:
    """Return that of a host's interface."""
    (link,) = json.loads(host.run("ip -j link show eth0"))
    return bytes.fromhex(link["address"].replace(":", ""))


def _statistics(host: Host) -> list[dict[str, dict[str, int]]]:
    return [link["stats64"] for link in json.loads(host.run("ip -j -s link show"))]


def received(host: Host) -> int:
    """Return how many packets have come by a host's interface."""
    return sum(link["rx"]["packets"] for link in _statistics(host))


def dropped(network: Network) -> int:
    """Return how many packets cables have lost, for they hold no more than 256 at once."""
    hosts = (network.switch, network.client, network.director, *network.servers)
    found = [link for host in hosts for link in _statistics(host)]
    return sum(link["rx"]["dropped"] + link["tx"]["dropped"] for link in found)


class Flood:
    """Sends packets of clients that are nowhere: nobody hears what servers answer.

    A client is known by its number. It has one address and one port.

    Args:
        network: where they send.
    """

    def __init__(self, network: Network) -> None:
        to, own = hardware_address(network.director), hardware_address(network.client)
        self._head = to + own + b"\x08\x00"
        with network.client.entered():
            self._sender = FrameSender(socket.if_nametoindex("eth0"))

    def frames(self, clients: Iterable[int], flags: int) -> list[bytes]:
        """Return a packet of each client."""
        to, head = (socket.inet_aton(VIP), PORT), self._head
        return [head + stack.tcp((address(n), 1024 + n % 50_000), to, flags, 1, 1) for n in clients]

    def send(self, frames: list[bytes]) -> None:
        """Send these as fast as it goes."""
        self._sender.waiting = frames
        self._sender.flush()
        assert not self._sender.failed

    def close(self) -> None:
        """Close the socket."""
        self._sender.close()


def address(client: int) -> bytes:
    """Return that of a client."""
    return bytes([11, *client.to_bytes(3, "big")])


def number(client: str) -> int:
    """Return the number of a client that a listing has; -1 where it is no flood's."""
    packed = socket.inet_aton(client.partition(":")[0])
    return int.from_bytes(packed[1:], "big") if packed[0] == 11 else -1


class Watch:
    """Sees, while it lasts, what comes out of the tunnel at the real servers.

    Attributes:
        seen: for each client, how many packets each server had of it.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._watching: list[subprocess.Popen[str]] = []
        self.seen: dict[int, Counter[str]] = {}

    def __enter__(self) -> Watch:
        for host in self._network.servers:
            command = ["tcpdump", "-i", "eth0", "-n", "-s", f"{_ADDRESSES}", "-B", "262144", "-w"]
            file, log = (self._network.place / f"{host.name}.{kind}" for kind in ("pcap", "log"))
            with log.open("w") as stream:
                started = host.start(*command, str(file), "src net 11.0.0.0/8", stderr=stream)
            until(lambda log=log: "listening" in log.read_text(), 10)
            self._watching.append(started)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host, process in zip(self._network.servers, self._watching, strict=True):
            log = self._network.place / f"{host.name}.log"
            until(lambda process=process, log=log: _has_all(process, log), 20)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            for client in self._clients(host):
                self.seen.setdefault(client, Counter())[host.name] += 1

    def _clients(self, host: Host) -> Iterator[int]:
        content = (self._network.place / f"{host.name}.pcap").read_bytes()
        at = _FILE.size
        while at < len(content):
            size = _FRAME.unpack_from(content, at)[2]
            at += _FRAME.size
            assert size == _ADDRESSES
            yield int.from_bytes(content[at + 27 : at + 30], "big")
            at += size


def _has_all(process: subprocess.Popen[str], log: Path) -> bool:
    """Whether tcpdump has written down all that it was to see; when it ends, it does not wait."""
    before = len(log.read_text())
    process.send_signal(signal.SIGUSR1)
    until(lambda: log.read_text()[before:].endswith("by kernel\n"))
    captured, seen, dropped = map(int, re.findall(r"\d+(?= packet)", log.read_text()[before:]))
    assert not dropped
    return captured == seen
