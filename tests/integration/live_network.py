"""Three hosts on a switch, in network namespaces, and a director on the live datapath.

Client, director and server are hosts of their own, as in the LVS-TUN tutorials: the virtual
address is on the director's interface and on the server's loopback device; the server takes the
tunnel off and answers the client directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from lvskit import Director, load_plugins
from lvskit.datapath.live import LiveDatapath, LiveOptions
from lvskit.plugins import Plugins
from lvskit.settings import ServerSettings, ServiceKey, ServiceSettings

CLIENT, DIRECTOR, SERVER, VIP = "10.1.0.2", "10.1.0.1", "10.1.0.3", "10.1.0.100"
CLIENT6, DIRECTOR6, SERVER6, VIP6 = "fd01::2", "fd01::1", "fd01::3", "fd01::100"
PORT = 80
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def key(address: str = VIP, port: int = PORT, protocol: int = 6) -> ServiceKey:
    return ServiceKey.of(protocol, packed(address), port)


class Host:
    """A network namespace."""

    def __init__(self) -> None:
        holder = subprocess.Popen(["unshare", "-n", "sleep", "60"])
        own = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == own:
            time.sleep(0.005)
        self.handle = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
        holder.kill()
        holder.wait()
        self.run("ip link set lo up")

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/proc/self/fd/{self.handle}", "sh", "-ec", command],
            pass_fds=[self.handle],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in this namespace: sockets made here stay in it."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            assert _libc.setns(self.handle, CLONE_NEWNET) == 0
            yield
        finally:
            assert _libc.setns(own, CLONE_NEWNET) == 0
            os.close(own)

    def socket(
        self, kind: int, family: int = socket.AF_INET, timeout: float = 3.0
    ) -> socket.socket:
        with self.entered():
            made = socket.socket(family, kind)
        made.settimeout(timeout)
        return made


class Network:
    """The three hosts on their switch."""

    def __init__(self) -> None:
        self.switch, self.client, self.director, self.server = (Host() for _ in range(4))
        self.switch.run("ip link add br0 type bridge && ip link set br0 up")
        for number, (host, v4, v6) in enumerate(
            (
                (self.client, CLIENT, CLIENT6),
                (self.director, DIRECTOR, DIRECTOR6),
                (self.server, SERVER, SERVER6),
            )
        ):
            peer = f"/proc/{os.getpid()}/fd/{host.handle}"
            self.switch.run(f"""
                ip link add port{number} type veth peer name eth0 netns {peer}
                ip link set port{number} master br0 up
            """)
            host.run(f"""
                ip link set eth0 up
                ip address add {v4}/24 dev eth0
                ip -6 address add {v6}/64 dev eth0 nodad
            """)
        self.director.run(f"""
            ip address add {VIP}/32 dev eth0
            ip -6 address add {VIP6}/128 dev eth0 nodad
        """)
        self.server.run(f"""
            sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
            ip address add {VIP}/32 dev lo
            ip -6 address add {VIP6}/128 dev lo nodad
            # Deaf to tunnels, until it takes them off, and dumb: no error tells the director.
            iptables -A OUTPUT -p icmp --icmp-type protocol-unreachable -j DROP
        """)
        self.closers: list[Callable[[], object]] = []

    def decapsulate(self) -> None:
        """Have the server take IPIP and IPv6 tunnels off, by a TUN device."""
        with self.server.entered():
            try:
                tun = os.open("/dev/net/tun", os.O_RDWR)
            except OSError as err:
                pytest.skip(f"/dev/net/tun cannot be opened: {err.strerror}")
            # struct ifreq: a name, then IFF_TUN | IFF_NO_PI; TUNSETIFF.
            fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH14x", b"tun0", 0x1001))
            outer = [
                (socket.socket(socket.AF_INET, socket.SOCK_RAW, 4), 20),
                (socket.socket(socket.AF_INET6, socket.SOCK_RAW, 41), 0),
                (socket.socket(socket.AF_INET6, socket.SOCK_RAW, 4), 0),
            ]
        self.server.run("""
            ip link set tun0 up mtu 1480
            sysctl -qw net.ipv4.conf.tun0.rp_filter=0 net.ipv4.conf.all.rp_filter=0
        """)
        stop, stopped = os.pipe()

        def work() -> None:
            headers = {each.fileno(): (each, size) for each, size in outer}
            while True:
                ready, _, _ = select.select([stop, *headers], [], [])
                if stop in ready:
                    return
                for descriptor in ready:
                    each, size = headers[descriptor]
                    os.write(tun, each.recv(65535)[size:])

        thread = threading.Thread(target=work)
        thread.start()

        def close() -> None:
            os.close(stopped)
            thread.join()
            for descriptor in (stop, tun):
                os.close(descriptor)
            for each, _ in outer:
                each.close()

        self.closers.append(close)

    def serve(self, host: Host, address: str = VIP, port: int = PORT) -> None:
        """Answer TCP connections with the SHA-256 of what they send until they shut down."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = host.socket(socket.SOCK_STREAM, family, timeout=60)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()

        def talk(peer: socket.socket) -> None:
            with peer, contextlib.suppress(OSError):
                digest = hashlib.sha256()
                peer.sendall(b"hello")
                while data := peer.recv(65536):
                    digest.update(data)
                peer.sendall(digest.digest())

        def work() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    peer.settimeout(10)
                    threading.Thread(target=talk, args=(peer,), daemon=True).start()

        thread = threading.Thread(target=work)
        thread.start()

        def close() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            listener.close()

        self.closers.append(close)

    def connect(self, address: str = VIP, port: int = PORT, timeout: float = 3.0) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = self.client.socket(socket.SOCK_STREAM, family, timeout)
        try:
            made.connect((address, port))
        except OSError:
            made.close()
            raise
        return made

    def close(self) -> None:
        for each in reversed(self.closers):
            each()
        for host in (self.switch, self.client, self.director, self.server):
            os.close(host.handle)


def upload(peer: socket.socket, size: int = 300_000) -> None:
    """Send and see that all of it has arrived."""
    data = os.urandom(size)
    with peer:
        assert peer.recv(5) == b"hello"
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(32) == hashlib.sha256(data).digest()


class Running:
    """A director with its live datapath, in a thread of the director's namespace."""

    def __init__(
        self, host: Host, options: LiveOptions | None = None, plugins: Plugins | None = None
    ) -> None:
        self._host = host
        self._plugins = plugins or load_plugins()
        self._ready: Future[None] = Future()
        self._services: Callable[[Director], None] = lambda director: None
        self._options = options

    def start(self, services: Callable[[Director], None]) -> Running:
        self._services = services
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        self._ready.result(10)
        return self

    def _work(self) -> None:
        with self._host.entered():
            asyncio.run(self._main())

    async def _main(self) -> None:
        try:
            self.datapath = LiveDatapath(self._options)
            self.director = Director(self._plugins, self.datapath.routes, now=time.monotonic())
            self.datapath.attach(self.director)
            self._services(self.director)
            self.told()
            self.datapath.open()
        except Exception as err:
            self.datapath.close()
            self._ready.set_exception(err)
            return
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self.datapath.run())
        self._loop.call_soon(self._ready.set_result, None)
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def told(self) -> None:
        self.datapath.services_changed(service.key for service in self.director.services)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call in the director's thread, as a command does."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except Exception as err:
                done.set_exception(err)

        self._loop.call_soon_threadsafe(run)
        return done.result(5)

    def connections(self) -> list[Any]:
        found: list[Any] = self.call(lambda: list(self.director.connections(time.monotonic())))
        return found

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()


def tunnelled(
    address: str = VIP, server: str = SERVER, **settings: Any
) -> Callable[[Director], None]:
    """Return what adds a TCP service and its one server."""

    def add(director: Director) -> None:
        director.add_service(key(address), ServiceSettings(scheduler="rr"))
        director.add_server(key(address), packed(server), None, ServerSettings(**settings))

    return add


def unanswered(network: Network, address: str = VIP) -> bool:
    """Whether a new connection gets no answer at all; False where it is refused."""
    try:
        network.connect(address, timeout=0.6).close()
    except TimeoutError:
        return True
    except ConnectionRefusedError:
        return False
    raise AssertionError("the connection was opened")
