"""Hosts in network namespaces of their own, and a daemon with the datapath xdp on one of them.

A client, a director and real servers hang on a switch. The virtual address is on the director's
interface and on each server's loopback device; servers take the tunnel off by the decapsulator
that lvskit brings, and answer the client directly.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLIENT, DIRECTOR, VIP = "10.1.0.2", "10.1.0.1", "10.1.0.100"
CLIENT6, DIRECTOR6, VIP6 = "fd01::2", "fd01::1", "fd01::100"
SERVERS = ("10.1.0.11", "10.1.0.12")
SERVERS6 = ("fd01::11", "fd01::12")
PORT = 80
_NEWNET = 0x40000000
_BIN = Path(sys.executable).parent
_libc = ctypes.CDLL(None, use_errno=True)

# Answers each connection with the server's name, then with as much as it is asked for.
_SERVER = """
import socket, socketserver, sys
name, port = sys.argv[1].encode(), int(sys.argv[2])
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(name + b"\\n")
        for line in self.rfile:
            self.wfile.write(bytes(int(line)))
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        sock.sendto(name + b" " + data, self.client_address)
class Datagrams(socketserver.ThreadingUDPServer):
    address_family = socket.AF_INET6
import threading
threading.Thread(target=Datagrams(("::", port), Echo).serve_forever, daemon=True).start()
Server(("::", port), Handler).serve_forever()
"""


class Host:
    """A network namespace, and the processes in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        holder = subprocess.Popen(["unshare", "-n", "sleep", "60"])
        own = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == own:
            time.sleep(0.005)
        self.handle = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
        holder.kill()
        holder.wait()
        self.processes: list[subprocess.Popen[str]] = []
        self.run("ip link set lo up")

    def _entering(self, command: list[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/self/fd/{self.handle}", *command]

    def run(self, command: str, timeout: float = 30) -> str:
        done = subprocess.run(
            self._entering(["sh", "-ec", command]),
            pass_fds=[self.handle], capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}{done.stdout}"
        return done.stdout

    def start(self, *command: str, **settings: Any) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            self._entering(list(command)), pass_fds=[self.handle], text=True, **settings
        )
        self.processes.append(started)
        return started

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in this namespace: sockets made here stay in it."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            assert _libc.setns(self.handle, _NEWNET) == 0
            yield
        finally:
            assert _libc.setns(own, _NEWNET) == 0
            os.close(own)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        os.close(self.handle)


class Network:
    """Client, director and two servers on their switch."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.switch, self.client, self.director = map(Host, ("switch", "client", "director"))
        self.servers = [Host(f"server{number}") for number in range(len(SERVERS))]
        self.switch.run("ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up")
        hosts = [(self.client, CLIENT, CLIENT6), (self.director, DIRECTOR, DIRECTOR6)]
        hosts += list(zip(self.servers, SERVERS, SERVERS6, strict=True))
        for number, (host, v4, v6) in enumerate(hosts):
            peer = f"/proc/{os.getpid()}/fd/{host.handle}"
            # XDP_TX reaches the other end of a veth only with GRO on there.
            self.switch.run(f"""
                ip link add port{number} type veth peer name eth0 netns {peer}
                ip link set port{number} master br0 up
                ethtool -K port{number} gro on >&2
            """)
            # A sum that is left to the card is never filled in on the way of XDP.
            host.run(f"""
                ethtool -K eth0 tx off >&2
                ip link set eth0 up
                ip address add {v4}/24 dev eth0
                ip -6 address add {v6}/64 dev eth0 nodad
            """)
        self.director.run(f"""
            ip address add {VIP}/32 dev eth0
            ip -6 address add {VIP6}/128 dev eth0 nodad
        """)
        for host in self.servers:
            self._serve(host)

    def _serve(self, host: Host) -> None:
        host.run(f"{self._realserver(host)} up --vip {VIP} --vip {VIP6} >&2")
        host.start(sys.executable, "-c", _SERVER, host.name, str(PORT))

    def _realserver(self, host: Host) -> str:
        return f"LVSKIT_RUNTIME_DIR={self.place / host.name} {_BIN}/lvskit realserver"

    def connect(self, address: str = VIP, timeout: float = 5.0) -> socket.socket:
        """Return a connection of the client's, whose server has not been asked for its name."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.client.entered():
            made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(timeout)
        made.connect((address, PORT))
        return made

    def close(self) -> None:
        for host in self.servers:
            host.run(f"{self._realserver(host)} down >&2")
        for host in (*self.servers, self.client, self.director, self.switch):
            host.close()


class Daemon:
    """`lvskit run --datapath xdp` on the director."""

    def __init__(self, network: Network, mode: str, config: str = "") -> None:
        self._network = network
        self._socket = network.place / "control.sock"
        path = network.place / "lvskit.toml"
        path.write_text(f'[director.datapath_options]\nmode = "{mode}"\n{config}')
        self.log = network.place / "log"
        with self.log.open("w") as log:
            self.process = network.director.start(
                str(_BIN / "lvskit"), "run", str(path), "--datapath", "xdp",
                "--interface", "eth0", "--socket", str(self._socket), stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while "ready" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def lvsadm(self, *arguments: str) -> str:
        command = f"{_BIN}/lvsadm {' '.join(arguments)}"
        return self._network.director.run(f"LVSKIT_SOCKET={self._socket} {command}")

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()


def status(text: str) -> Any:
    return json.loads(text)
