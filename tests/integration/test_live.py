"""The live datapath end to end: real TCP and UDP through a director in network namespaces.

Client, director and server are hosts of their own on one switch, as in the LVS-TUN tutorials: the
virtual address is on the director's interface and on the server's loopback device; the server
takes the tunnel off and answers the client directly.
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
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lvskit import Director, load_plugins
from lvskit.datapath.live import LiveDatapath, LiveOptions, remove_rules
from lvskit.datapath.live.routes import PathErrors, Routes
from lvskit.errors import DatapathError
from lvskit.settings import ServerSettings, ServiceKey, ServiceSettings

pytestmark = pytest.mark.integration

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

    def __init__(self, host: Host, options: LiveOptions | None = None) -> None:
        self._host = host
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
            self.director = Director(load_plugins(), self.datapath.routes, now=time.monotonic())
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


@pytest.fixture
def network() -> Iterator[Network]:
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"network namespaces cannot be made here: {probe.stderr.strip()}")
    made = Network()
    yield made
    made.close()


@pytest.fixture
def direct(network: Network) -> Iterator[Callable[..., Running]]:
    """Starts directors, and stops them in the end."""
    started: list[Running] = []

    def start(services: Callable[[Director], None], **options: Any) -> Running:
        running = Running(network.director, LiveOptions(**options))
        running.start(services)
        started.append(running)
        return running

    yield start
    for each in started:
        each.stop()


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


@pytest.mark.parametrize(("vip", "server"), [(VIP, SERVER), (VIP6, SERVER6), (VIP, SERVER6)])
def test_tcp_through_a_tunnel(network, direct, vip, server):
    # The client's network card segments and sums (veth, all offloads on), so this shows too that
    # what leaves in the tunnel is cut to size and has checksums; and that the client learns of
    # the tunnel's smaller MTU from the director's ICMP error.
    network.decapsulate()
    network.serve(network.server, vip)
    running = direct(tunnelled(vip, server))
    upload(network.connect(vip))
    (connection,) = running.connections()
    assert connection.server.address == packed(server)
    assert connection.server.counters.inbytes > 300_000
    assert running.datapath.losses() == {"queue_full": 0, "buffer_full": 0, "not_sent": 0}


def test_udp_larger_than_the_tunnel_is_fragmented(network, direct):
    network.decapsulate()
    receiver = network.server.socket(socket.SOCK_DGRAM)
    receiver.bind((VIP, PORT))
    sender = network.client.socket(socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: no DF

    def services(director: Director) -> None:
        director.add_service(key(protocol=17), ServiceSettings(scheduler="rr"))
        director.add_server(key(protocol=17), packed(SERVER), None, ServerSettings())

    direct(services)
    with receiver, sender:
        for size in (10, 1471, 1472, 6000):
            sender.sendto(os.urandom(size), (VIP, PORT))
            assert len(receiver.recv(65535)) == size


@pytest.mark.parametrize("family", [4, 6])
def test_fwmark(network, direct, family):
    vip, server = (VIP, SERVER) if family == 4 else (VIP6, SERVER6)
    network.decapsulate()
    network.serve(network.server, vip, 8080)
    command = "iptables" if family == 4 else "ip6tables"
    network.director.run(
        f"{command} -t mangle -A PREROUTING -p tcp --dport 8080 -j MARK --set-mark 7"
    )
    marked = ServiceKey.mark(7, family)

    def services(director: Director) -> None:
        director.add_service(marked, ServiceSettings(scheduler="rr"))
        director.add_server(marked, packed(server), 0, ServerSettings())

    direct(services)
    upload(network.connect(vip, 8080))
    with pytest.raises(ConnectionRefusedError):
        network.connect(vip, 8081)


def test_the_firewall_comes_first(network, direct):
    running = direct(tunnelled())
    network.director.run(f"iptables -A INPUT -p tcp -s {CLIENT} --dport {PORT} -j DROP")
    assert unanswered(network)
    assert running.datapath.received == 0
    assert running.connections() == []


@pytest.mark.parametrize(("vip", "own"), [(VIP, DIRECTOR), (VIP6, DIRECTOR6)])
def test_local_server_and_its_replies(network, direct, vip, own):
    network.serve(network.director, vip)
    running = direct(tunnelled(vip, own))
    with network.connect(vip) as peer:
        assert peer.recv(5) == b"hello"
        (connection,) = running.connections()
        assert connection.state_name == "ESTABLISHED"
        assert connection.two_way
    upload(network.connect(vip))
    total = running.call(lambda: running.director.services.counters)
    assert total.inbytes > 300_000
    assert total.outpkts > 4


def test_fragments_of_ipv6_are_put_together_first(network, direct):
    receiver = network.director.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    receiver.bind((VIP6, PORT))
    sender = network.client.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    service = key(VIP6, protocol=17)

    def services(director: Director) -> None:
        director.add_service(service, ServiceSettings(scheduler="rr"))
        director.add_server(service, packed(DIRECTOR6), None, ServerSettings())

    running = direct(services)
    with receiver, sender:
        sender.sendto(os.urandom(6000), (VIP6, PORT))
        assert len(receiver.recv(65535)) == 6000
    assert running.datapath.received == 1


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_no_server_is_answered_by_icmp(network, direct, vip):
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    service = key(vip, protocol=17)
    direct(lambda director: director.add_service(service, ServiceSettings(scheduler="rr")))
    with network.client.socket(socket.SOCK_DGRAM, family) as sender:
        sender.connect((vip, PORT))
        sender.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)


def test_other_ports_are_the_hosts(network, direct):
    network.serve(network.director, VIP, 22)
    direct(tunnelled())
    upload(network.connect(VIP, 22), 1000)


def test_packets_are_dropped_while_the_daemon_is_down(network, direct):
    network.decapsulate()
    network.serve(network.server)
    running = direct(tunnelled())
    peer = network.connect()
    assert peer.recv(5) == b"hello"
    running.stop()
    assert unanswered(network)
    peer.sendall(b"more")
    peer.settimeout(0.5)
    with pytest.raises(TimeoutError):  # neither an answer nor a reset
        peer.recv(1)
    peer.close()
    again = direct(tunnelled())  # adopts the table
    upload(network.connect())
    again.stop()
    with network.director.entered():
        remove_rules()
    assert not unanswered(network)
    assert network.director.run("nft list ruleset") == ""


@pytest.mark.parametrize("options", [{"on_stop": "open"}, {"bypass": True}])
def test_open_removes_everything(network, direct, options):
    running = direct(tunnelled(), **options)
    assert unanswered(network)  # the server is deaf
    running.stop()
    assert not unanswered(network)
    assert network.director.run("nft list ruleset") == ""


def test_a_stop_without_services_leaves_nothing(network, direct):
    direct(lambda director: None).stop()
    assert network.director.run("nft list ruleset") == ""


def test_services_come_and_go(network, direct):
    network.decapsulate()
    network.serve(network.server)
    running = direct(lambda director: None)
    assert not unanswered(network)
    running.call(lambda: (tunnelled()(running.director), running.told()))
    with network.connect() as peer:
        assert peer.recv(5) == b"hello"

        # With another service left, packets of the removed one's connections are dropped, not
        # reset, as long as there are some.
        def replace() -> None:
            running.director.add_service(key(port=81), ServiceSettings(scheduler="rr"))
            running.director.remove_service(key(), time.monotonic())
            running.told()

        running.call(replace)
        peer.sendall(b"more")
        peer.settimeout(0.5)
        with pytest.raises(TimeoutError):
            peer.recv(1)
    running.call(lambda: (running.director.clear(time.monotonic()), running.told()))
    assert not unanswered(network)


def test_a_flushed_ruleset_comes_back(network, direct):
    direct(tunnelled())
    assert unanswered(network)
    network.director.run("nft flush ruleset")
    time.sleep(0.3)
    assert unanswered(network)
    assert "@services4" in network.director.run("nft list ruleset")


def test_a_second_daemon_is_refused_and_spoils_nothing(network, direct):
    direct(tunnelled())
    with pytest.raises(DatapathError, match="packet queue 8080 is refused"):
        direct(lambda director: None)
    assert unanswered(network)


def test_routes_follow_the_host(network, direct):
    running = direct(tunnelled())

    def route() -> Any:
        (service,) = running.director.services
        return service.servers[0].route

    assert route().mtu == 1500
    network.director.run("ip link set eth0 mtu 1400")
    time.sleep(0.3)
    assert route().mtu == 1400
    network.director.run("ip link set eth0 down")
    time.sleep(0.3)
    assert route() is None


def test_path_mtus_are_learnt_from_icmp_errors(network):
    with network.director.entered():
        routes, errors = Routes(), PathErrors()
    target = packed(SERVER)
    assert routes.get(target).mtu == 1500
    # "Fragmentation needed, 1300" about a tunnel's packet, as a router on the way says it.
    inner = bytes((0x45, 0, 5, 220, 0, 0, 0x40, 0, 63, 4, 0, 0)) + packed(DIRECTOR) + target
    message = bytes((3, 4, 0, 0, 0, 0)) + (1300).to_bytes(2, "big") + inner + bytes(8)
    total = sum(struct.unpack(f">{len(message) // 2}H", message))
    message = message[:2] + (0xFFFF - total % 0xFFFF).to_bytes(2, "big") + message[4:]
    with network.server.entered():
        router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with router:
        router.sendto(message, (DIRECTOR, 0))
    assert (
        select.select([], [], errors.sockets, 3)[2] or select.select(errors.sockets, [], [], 0)[0]
    )
    errors.drain()
    assert routes.refresh()
    assert routes.get(target).mtu == 1300
    assert not routes.refresh()
    routes.close()
    errors.close()


def test_without_privileges_it_says_what_is_missing():
    program = """
from lvskit.datapath.live import LiveDatapath, LiveOptions
from lvskit.errors import DatapathError
try:
    LiveDatapath(LiveOptions()).open()
except DatapathError as err:
    print(err)
"""
    done = subprocess.run(
        ["unshare", "-U", sys.executable, "-c", program], capture_output=True, text=True
    )
    if "unshare" in done.stderr:
        pytest.skip(f"user namespaces cannot be made here: {done.stderr.strip()}")
    assert "CAP_NET_RAW" in done.stdout, done.stderr


def test_the_benchmark_runs_in_a_user_namespace():
    if subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces cannot be made here")
    bench = Path(__file__).parents[2] / "bench" / "live.py"
    command = [sys.executable, bench, "--inside", "--seconds", "0.3", "--flows", "10"]
    done = subprocess.run(["unshare", "-Urn", *command], capture_output=True, text=True)
    assert "packets/s" in done.stdout, done.stderr
