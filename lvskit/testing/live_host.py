"""The host of the recordings as a network namespace: one interface, and the wire behind it.

All packets come from the other end of the interface, and all that is emitted is seen there. A
frame of our own kind follows every packet, so that nobody has to guess when the kernel is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lvskit.errors import DatapathError
from lvskit.lab.namespaces import NEWNET, setns, unshare
from lvskit.testing.wire import Tree
from lvskit.testing.world import ADDRESSES, UNREACHABLE, Unsupported

_GATEWAYS: Final = ("192.168.1.1", "2001:db8::1")
_OWN_MAC: Final = "02:00:00:00:00:fe"
_GATEWAY_MAC: Final = "02:00:00:00:00:01"
_SERVERS: Final = range(11, 31)
INTERFACE: Final = "eth0"
_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"

_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_MARKER: Final = 0x88B5  # for local experiments (IEEE Std 802)
_EVERYTHING: Final = 0x0003  # ETH_P_ALL
_OUTGOING: Final = 4  # PACKET_OUTGOING: what this socket's own host sent
_HEADER: Final = 14
_VLAN_TAG: Final = 4  # that much more than the MTU an interface takes in
_BUFFER: Final = 1 << 22
_LARGEST: Final = 1 << 17
_PATIENCE_S: Final = 10.0

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_STXCSUM: Final = 0x17
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

_SETTINGS: Final = {
    "ipv4/ip_forward": 1,
    "ipv4/icmp_ratelimit": 0,
    "ipv4/icmp_msgs_per_sec": 1_000_000,
    "ipv4/icmp_msgs_burst": 1_000_000,
    "ipv6/conf/all/forwarding": 1,
    "ipv6/icmp/ratelimit": 0,
}
_DEVICE_SETTINGS: Final = {
    "ipv4": {"rp_filter": 0, "send_redirects": 0, "accept_redirects": 0},
    "ipv6": {"accept_dad": 0, "accept_ra": 0, "disable_ipv6": 0},
}


class LiveHost:
    """A new network namespace in the setting of every scenario, which this thread is in.

    Args:
        setting: the scenario's `director`.

    Raises:
        DatapathError: namespaces cannot be made here, or a tool is missing.
    """

    def __init__(self, setting: Tree) -> None:
        self._mtu: int = setting.get("mtu", 1500)
        self._token = 0
        self._home = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        self._away = False
        self._sockets: list[socket.socket] = []
        # One processor for both ends: what is sent first then arrives first.
        self._processors = os.sched_getaffinity(0)
        choice = sorted(self._processors)
        os.sched_setaffinity(0, {choice[os.getpid() % len(choice)]})
        try:
            self._build(setting)
        except OSError as err:
            self.close()
            raise DatapathError(
                f"no network namespace can be set up: {err}; run it as root, or in `unshare -Urn`"
            ) from err
        except BaseException:
            self.close()
            raise

    def _build(self, setting: Tree) -> None:
        unshare(NEWNET)
        self._away = True
        beyond = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            unshare(NEWNET)
            for name, value in _SETTINGS.items():
                with contextlib.suppress(FileNotFoundError):  # some are newer than others
                    write_setting(f"net/{name}", value)
            for scope in ("all", "default"):
                _write_all(scope)
            peer = f"peer name wire netns /proc/self/fd/{beyond}"
            _ip(
                f"link add {INTERFACE} address {_OWN_MAC} mtu {self._mtu} type veth {peer}",
                keep=beyond,
            )
            with _entered(beyond):
                write_setting("net/ipv6/conf/wire/disable_ipv6", 1)
                _ip("link set wire up mtu 65535")
            extra = setting.get("routes", [])
            _ip(*_commands(), *(line for line in extra if not line.startswith("-6 ")))
            extra = [line[3:] for line in extra if line.startswith("-6 ")]
            _ip(f"route add default via {_GATEWAYS[1]}", *extra, options=("-6",))
            self._near = self._packet_socket(INTERFACE, _MARKER)
            with _entered(beyond):
                self._far = self._packet_socket("wire", _EVERYTHING)
        finally:
            os.close(beyond)
        _switch_checksum_offload_off(self._near, INTERFACE)
        for rule in setting.get("marks", []):
            _mark(rule)

    def _packet_socket(self, interface: str, kind: int) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        made.bind((interface, kind))
        made.settimeout(_PATIENCE_S)
        return made

    def tunnel_end(self) -> int:
        """Make a device into which to write what came in a tunnel; return its descriptor."""
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", b"tun0", _IFF_TUN | _IFF_NO_PI))
        _ip("link set tun0 up")
        return device

    # --- packets ---

    def send(self, packet: bytes) -> None:
        """Let `packet` arrive at the interface."""
        if len(packet) > self._mtu + _VLAN_TAG:
            raise Unsupported(f"a packet of {len(packet)} bytes on a link of {self._mtu}")
        kind = _IPV6 if packet[:1] >= b"\x60" else _IPV4
        self._far.send(_frame(_OWN_MAC, _GATEWAY_MAC, kind, packet))

    def arrived(self) -> None:
        """Wait until everything that was sent has passed the host's hooks, or waits in a queue."""
        marker = self._next_marker()
        self._far.send(marker)
        for frame, _ in _frames(self._near):
            if frame == marker:
                return

    def emitted(self) -> list[tuple[str, bytes]]:
        """Return what the host has emitted since the last call: next hop and packet."""
        marker = self._next_marker()
        self._near.send(marker)
        found = []
        for frame, kind in _frames(self._far):
            if frame == marker:
                break
            packet = frame[_HEADER:]
            if kind in (_IPV4, _IPV6) and not _is_neighbourly(packet):
                found.append((_next_hop(frame[:6]), packet))
        return found

    def _next_marker(self) -> bytes:
        self._token += 1
        return _frame(_OWN_MAC, _GATEWAY_MAC, _MARKER, self._token.to_bytes(46, "big"))

    def close(self) -> None:
        """Leave the namespace; with the last socket in it, it is gone."""
        for each in self._sockets:
            each.close()
        if self._away:
            setns(f"/proc/self/fd/{self._home}", NEWNET)
        os.close(self._home)
        os.sched_setaffinity(0, self._processors)


def write_setting(key: str, value: object) -> None:
    """Change a kernel setting, `net/ipv4/…`, of this thread's network namespace."""
    Path("/proc/sys", key).write_text(str(value))


def _write_all(scope: str) -> None:
    for family, settings in _DEVICE_SETTINGS.items():
        for name, value in settings.items():
            write_setting(f"net/{family}/conf/{scope}/{name}", value)


def _commands() -> list[str]:
    """Return the lines of an `ip` batch file that every scenario begins with."""
    lines = ["link set lo up", "link set eth0 up"]
    lines += [f"address add {address} dev eth0" for address in ADDRESSES]
    neighbours = dict.fromkeys(_GATEWAYS, _GATEWAY_MAC)
    for number in _SERVERS:
        for prefix in ("192.168.1.", "2001:db8::"):
            neighbours[f"{prefix}{number}"] = f"02:00:00:00:01:{number:02x}"
    for address, mac in neighbours.items():
        lines.append(f"neighbour add {address} lladdr {mac} dev eth0 nud permanent")
    lines.append(f"route add default via {_GATEWAYS[0]}")
    lines.append(f"route add unreachable {UNREACHABLE}")
    return lines


def _ip(*lines: str, options: tuple[str, ...] = (), keep: int | None = None) -> None:
    """Run lines of an `ip` batch file; the descriptor `keep` is open in it."""
    kept = () if keep is None else (keep,)
    _run(["ip", *options, "-batch", "-"], "\n".join(lines), kept)


def _mark(rule: Tree) -> None:
    """Let arriving packets be marked, as a scenario says."""
    command = "ip6tables" if ":" in rule["dst"] else "iptables"
    match = ["-d", rule["dst"]]
    if "proto" in rule:
        match += ["-p", rule["proto"]]
    if "dports" in rule:
        match += ["-m", "multiport", "--dports", ",".join(map(str, rule["dports"]))]
    action = ["-j", "MARK", "--set-mark", str(rule["mark"])]
    _run([command, "-t", "mangle", "-A", "PREROUTING", *match, *action], "")


def _run(command: list[str], given: str, descriptors: tuple[int, ...] = ()) -> None:
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=descriptors,
        )
    except FileNotFoundError as err:
        raise DatapathError(f"{command[0]} is not installed, which sets the scene up") from err
    if done.returncode:
        raise DatapathError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def _entered(namespace: int) -> Iterator[None]:
    """Be in another network namespace: sockets made there stay in it."""
    own = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(f"/proc/self/fd/{namespace}", NEWNET)
        yield
    finally:
        setns(f"/proc/self/fd/{own}", NEWNET)
        os.close(own)


def _switch_checksum_offload_off(any_socket: socket.socket, interface: str) -> None:
    """Have the host complete every checksum, and cut every segment, before the wire."""
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
    fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def _frames(receiver: socket.socket) -> Iterator[tuple[bytes, int]]:
    """Iterate over what comes in, with its kind; `DatapathError` when it takes too long."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            frame, (_, kind, direction, *_) = receiver.recvfrom(_LARGEST)
        except TimeoutError:
            break
        if direction != _OUTGOING:
            yield frame, kind
    raise DatapathError(f"the wire stays silent for {_PATIENCE_S:g} s")


def _frame(target: str, source: str, kind: int, payload: bytes) -> bytes:
    return _mac(target) + _mac(source) + kind.to_bytes(2, "big") + payload


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _next_hop(mac: bytes) -> str:
    """Return the neighbour that a frame goes to, as recordings name it."""
    if mac[:5] == _mac("02:00:00:00:01"):
        return f"x.{mac[5]}"
    return "gw" if mac == _mac(_GATEWAY_MAC) else mac.hex(":")


def _is_neighbourly(packet: bytes) -> bool:
    """Whether it is of IPv6's own housekeeping: neighbours, routers, multicast groups."""
    if packet[0] >> 4 != 6:
        return False
    at = 48 if packet[6] == 0 else 40  # behind a router alert
    return packet[6] in (0, 58) and packet[at] in (130, 131, 132, 133, 134, 135, 136, 143)
