"""Hosts in network namespaces of their own, and a daemon with the datapath xdp on one of them.

A client, a director and real servers hang on a switch. The virtual address is on the director's
interface and on each server's loopback device; servers take the tunnel off by the decapsulator
that lvskit brings, and answer the client directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lvskit_datapath_xdp
import pytest
from lvskit_datapath_xdp.datapath import XdpDatapath
from lvskit_datapath_xdp.loader import BpfObject

from lvskit import DatapathError
from lvskit.control.daemon import DirectorServer

CLIENT, DIRECTOR, VIP = "10.1.0.2", "10.1.0.1", "10.1.0.100"
CLIENT6, DIRECTOR6, VIP6 = "fd01::2", "fd01::1", "fd01::100"
SERVERS = ("10.1.0.11", "10.1.0.12")
SERVERS6 = ("fd01::11", "fd01::12")
PORT = 80
_NEWNET = 0x40000000
_OBJECT = Path(lvskit_datapath_xdp.__file__).parent / "bpf" / "lvskit.bpf.o"
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
for vip in sys.argv[3:]:
    threading.Thread(target=Datagrams((vip, port), Echo).serve_forever, daemon=True).start()
server = Server(("::", port), Handler)
print("ready", flush=True)
server.serve_forever()
"""


N = TypeVar("N")


@contextmanager
def built(kind: Callable[..., N], *arguments: Any, needs: Sequence[str] = ()) -> Iterator[N]:
    """Build a network, and take it down; a test skips without the commands that it `needs`."""
    for command in ("ip", "ethtool", "nsenter", *needs):
        if not shutil.which(command):
            pytest.skip(f"needs the command `{command}`")
    made = kind(*arguments)
    yield made
    made.close()


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
        self.held: list[Any] = []
        self.switch, self.client, self.director = map(Host, ("switch", "client", "director"))
        self.servers = [Host(f"server{number}") for number in range(len(SERVERS))]
        self.switch.run("ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up")
        hosts = [(self.client, CLIENT, CLIENT6), (self.director, DIRECTOR, DIRECTOR6)]
        hosts += list(zip(self.servers, SERVERS, SERVERS6, strict=True))
        for number, (host, v4, v6) in enumerate(hosts):
            peer = f"/proc/{os.getpid()}/fd/{host.handle}"
            self.switch.run(f"""
                ip link add port{number} type veth peer name eth0 netns {peer}
                ip link set port{number} master br0 up
            """)
            # A sum that is left to the card is never filled in on the way of XDP; an address that
            # is looked for elsewhere first is there only some seconds later.
            host.run(f"""
                ethtool -K eth0 tx off >&2
                sysctl -qw net.ipv6.conf.eth0.accept_dad=0
                ip link set eth0 up
                ip address add {v4}/24 dev eth0
                ip -6 address add {v6}/64 dev eth0
            """)
        self.director.run(f"""
            ip address add {VIP}/32 dev eth0
            ip -6 address add {VIP6}/128 dev eth0
        """)
        # What XDP sends natively into a veth gets through only where the other end has a program
        # too; this one passes everything, as it knows no service.
        with self.switch.entered():
            passing = BpfObject.read(_OBJECT).load()
            port = socket.if_nametoindex("port1")
            self.held += [passing, passing.programs["lvskit"].attach(port, "native")]
        self._each(self._serve)

    def _each(self, work: Callable[[Host], object]) -> None:
        """Do something with all servers at the same time."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(work, self.servers))

    def _serve(self, host: Host) -> None:
        host.run(f"{self._realserver(host)} up --vip {VIP} --vip {VIP6} >&2")
        self._answer(host)

    def _answer(self, host: Host) -> None:
        """Start what answers clients, and wait until it does."""
        words = ("-c", _SERVER, host.name, str(PORT), f"::ffff:{VIP}", VIP6)
        started = host.start(sys.executable, *words, stdout=subprocess.PIPE)
        assert started.stdout is not None
        with started.stdout as said:
            assert said.readline() == "ready\n"

    def _realserver(self, host: Host) -> str:
        return f"LVSKIT_RUNTIME_DIR={self.place / host.name} {_BIN}/lvskit realserver"

    def connect(self, address: str = VIP, timeout: float = 30.0) -> socket.socket:
        """Return a connection of the client's, whose server has not been asked for its name."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.client.entered():
            made = socket.socket(family, socket.SOCK_STREAM)
        self.held.append(made)
        made.settimeout(timeout)
        made.connect((address, PORT))
        return made

    def close(self) -> None:
        for held in reversed(self.held):
            held.close()
        self._each(lambda host: host.run(f"{self._realserver(host)} down >&2"))
        for host in (*self.servers, self.client, self.director, self.switch):
            host.close()


class Running:
    """A director with the datapath xdp, in a thread of the director's namespace."""

    def __init__(
        self, network: Network, services: Sequence[dict[str, Any]] = (), **options: Any
    ) -> None:
        self._host = network.director
        given = {"interface": "eth0", "pins": "", **options}
        director = {"datapath": "xdp", "datapath_options": given, "socket": ""}
        director["state"] = str(network.place / "state")
        self._server = DirectorServer({"director": director, "service": list(services)})
        self._ready: Future[None] = Future()
        self._failure: DatapathError | None = None
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        self._ready.result(20)
        self.director = self._server.director
        self.datapath: XdpDatapath = self.director.wheel._kept_until.__self__

    def _work(self) -> None:
        with self._host.entered():
            asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._server.start()
        except Exception as err:
            self._ready.set_exception(err)
            return
        self._ready.set_result(None)
        try:
            await self._server.serve()
        except DatapathError as err:
            self._failure = err
        await self._server.close()

    def do(self, function: Callable[[], Any]) -> Any:
        """Call in the director's thread."""
        done: Future[Any] = Future()

        def work() -> None:
            try:
                done.set_result(function())
            except Exception as err:
                done.set_exception(err)

        self._loop.call_soon_threadsafe(work)
        return done.result(10)

    def call(self, method: str, **params: Any) -> Any:
        """Carry out a command."""
        return self.do(lambda: self._server.control.call(method, params))

    def add(self, service: dict[str, Any], servers: Sequence[str], **settings: Any) -> None:
        """Add a service and its servers, and wait until it is known where they are."""
        self.call("add_service", service=service)
        for address in servers:
            self.call("add_server", service=service, server={"address": address, **settings})
        until(lambda: len(self.datapath._neighbours.hops) >= len(servers))

    def servers(self, number: int = 0) -> dict[str, Any]:
        """Return what a listing says of a service's servers, by address."""
        service = self.call("status")["services"][number]
        return {each["config"]["address"].rpartition(":")[0]: each for each in service["servers"]}

    def active(self) -> int:
        return sum(each.get("active", 0) for each in self.servers().values())

    def inactive(self) -> int:
        return sum(each.get("inactive", 0) for each in self.servers().values())

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("connections")
        return found

    def failure(self) -> None:
        """Wait until the datapath fails, and raise what it said."""
        self._thread.join(10)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._server.stop)
            self._thread.join()


def until(claim: Callable[[], Any], seconds: float = 3.0) -> Any:
    """Wait until something is so; return it."""
    deadline = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)
    return found
