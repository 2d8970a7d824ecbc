"""The device that takes packets out of the tunnel: the kernel's own, or lvskit's.

Linux has them in the modules ipip, ip6_tunnel and sit. Where those are missing (small virtual
machines, containers of an ordinary user) a process of lvskit reads the tunnel packets from raw
sockets and hands what is inside to a TUN device; where /dev/net/tun may not be opened, to one
end of a veth pair whose other end holds the VIPs.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from lvskit.errors import DatapathError
from lvskit.hostsetup.changes import Change, Step, read_sysctl, write_sysctl
from lvskit.hostsetup.netlink import Netlink
from lvskit.hostsetup.process import Process

DEVICE: Final = "lvskit0"
FEEDER: Final = "lvskit0f"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
_VETH_MTU: Final = 65535  # the network card may have joined many small packets into one
_SO_RCVBUFFORCE: Final = 33
# Outer family and next header: IPv4 or IPv6 (4, 41) within either.
OUTER: Final = (
    (socket.AF_INET, socket.IPPROTO_IPIP),
    (socket.AF_INET, socket.IPPROTO_IPV6),
    (socket.AF_INET6, socket.IPPROTO_IPIP),
    (socket.AF_INET6, socket.IPPROTO_IPV6),
)
MODULES: Final = {"ipip": "ipip", "ip6tnl": "ip6_tunnel", "sit": "sit"}
FALLBACK: Final = {"ipip": "tunl0", "ip6tnl": "ip6tnl0", "sit": "sit0"}


class Way(enum.StrEnum):
    """How packets come out of the tunnel.

    TUN and VETH are for kernels without tunnel devices. A kernel with them, but none up, answers
    each packet with an ICMP error as well (net/ipv4/tunnel4.c), which a director heeds.
    """

    AUTO = "auto"
    KERNEL = "kernel"
    TUN = "tun"
    VETH = "veth"


def kernel_has(kind: str, kernel: Netlink) -> bool:
    """Say whether the kernel can make a tunnel device of this kind, loading a module if need be."""
    if kernel.link(FALLBACK[kind]) is not None:
        return True
    modules = Path("/lib/modules", platform.release())
    name = f"/{MODULES[kind]}.ko"
    return any(
        name in (modules / index).read_text()
        for index in ("modules.dep", "modules.builtin")
        if (modules / index).exists()
    )


def tun_usable() -> bool:
    """Say whether this process may open /dev/net/tun."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError:
        return False
    return True


class KernelTunnel(Step, kw_only=True):
    """A tunnel device of the kernel's own.

    Attributes:
        name: the device; the module's own (`tunl0`) takes packets of any sender.
        kind: "ipip", "ip6tnl" or "sit".
        remote: the only director it takes packets of; None: any.
        existed: it was there before; `was_up`: and up.
    """

    name: str
    kind: str
    remote: str | None
    existed: bool
    was_up: bool

    @classmethod
    def wanted(
        cls, kernel: Netlink, kind: str, *, name: str | None = None, remote: str | None = None
    ) -> KernelTunnel:
        """Return the step for such a device, and remember how it is now."""
        name = name or FALLBACK[kind]
        link = kernel.link(name)
        return cls(
            name=name,
            kind=kind,
            remote=remote,
            existed=link is not None,
            was_up=link is not None and link.up,
        )

    @property
    def key(self) -> Any:
        """The kind and whom it is for."""
        return "tunnel", self.kind, self.remote

    def changes(self) -> list[Change]:
        """One line, or two if the device is to be made."""
        lines = []
        if not self.existed and self.remote is None:
            command = f"modprobe {MODULES[self.kind]}"
            lines.append(Change(text="load the kernel's tunnel module", command=command))
        elif not self.existed:
            command = f"ip link add {self.name} type {self.kind} remote {self.remote}"
            if self.kind == "ip6tnl":
                command += " mode any"
            text = f"make a tunnel device for packets of {self.remote}"
            lines.append(Change(text=text, command=command))
        text = "let the kernel take packets out of the tunnel"
        return [*lines, Change(text=text, command=f"ip link set {self.name} up")]

    def done(self, kernel: Netlink) -> bool:
        """The device is there, and up."""
        link = kernel.link(self.name)
        return link is not None and link.up

    def apply(self, kernel: Netlink) -> None:
        """Make it, which loads the module, and bring it up."""
        if kernel.link(self.name) is None:
            options: dict[str, Any] = {}
            if self.remote is not None:
                options[f"{self.kind}_remote"] = self.remote
            if self.kind == "ip6tnl":
                options["ip6tnl_proto"] = 0  # IPv4 within IPv6 as well
            try:
                kernel.add_link(self.name, self.kind, **options)
            except DatapathError:
                # Loading the module made its own device, of this very name.
                if kernel.link(self.name) is None:
                    raise
        kernel.set_link(self.name, state="up")

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """Bring it down if it was, and remove it if it was made; the module's own stays."""
        link = kernel.link(self.name)
        if link is None or self.was_up:
            return []
        if self.existed or self.remote is None:
            if not dry_run:
                kernel.set_link(self.name, state="down")
            command = f"ip link set {self.name} down"
            return [Change(text="let the kernel take nothing out of the tunnel", command=command)]
        if not dry_run:
            kernel.delete_link(self.name)
        return [Change(text="remove the tunnel device", command=f"ip link del {self.name}")]


class Decapsulator(Step, kw_only=True):
    """lvskit's own process that takes packets out of the tunnel, and its device.

    Attributes:
        way: `Way.TUN` or `Way.VETH`.
        state: the file that tells the process the VIPs and the directors.
        process: the process; None before it is started.
    """

    way: Way
    state: str
    process: Process | None = None

    @property
    def key(self) -> Any:
        """There is one for a network namespace."""
        return "decapsulator"

    def changes(self) -> list[Change]:
        """A line for the device, one for its filter, one for the process."""
        if self.way is Way.TUN:
            command = f"ip tuntap add {DEVICE} mode tun && ip link set {DEVICE} up"
        else:
            command = (
                f"ip link add {DEVICE} arp off type veth peer {FEEDER} arp off"
                f" && ip link set {DEVICE} mtu {_VETH_MTU} up"
                f" && ip link set {FEEDER} mtu {_VETH_MTU} up"
            )
        return [
            Change(text="make the device that packets come out of the tunnel by", command=command),
            Change(
                text="accept clients' packets on it, though the way back is by another device",
                command=f"sysctl -w net.ipv4.conf.{DEVICE}.rp_filter=0",
            ),
            Change(text="start lvskit's decapsulator (the kernel here has no ipip of its own)"),
        ]

    def done(self, kernel: Netlink) -> bool:
        """The process runs and its device is there."""
        running = self.process is not None and self.process.running
        return running and kernel.link(DEVICE) is not None

    def apply(self, kernel: Netlink) -> None:
        """Make the device and start the process, which inherits every socket it needs."""
        if kernel.link(DEVICE) is not None:
            # The veth pair of a decapsulator that was killed.
            kernel.delete_link(DEVICE)
        sockets = [_raw_socket(family, protocol) for family, protocol in OUTER]
        try:
            exit_, target = self._device(kernel)
        except BaseException:
            _close(sockets)
            raise
        try:
            self.process = self._start(sockets, exit_, target)
        finally:
            _close(sockets)
            os.close(exit_)

    def _device(self, kernel: Netlink) -> tuple[int, str]:
        exit_ = _open_tun() if self.way is Way.TUN else _open_veth(kernel)
        # No router solicitations, no multicast reports: nobody is behind this device.
        if read_sysctl(f"net/ipv6/conf/{DEVICE}/addr_gen_mode") is not None:
            write_sysctl(f"net/ipv6/conf/{DEVICE}/addr_gen_mode", "1")
        write_sysctl(f"net/ipv4/conf/{DEVICE}/rp_filter", "0")
        kernel.set_link(DEVICE, state="up")
        link = kernel.link(DEVICE)
        return exit_, link.mac if link is not None and self.way is Way.VETH else ""

    def _start(self, sockets: list[socket.socket], exit_: int, target: str) -> Process:
        descriptors = [sock.fileno() for sock in sockets]
        argv = [sys.executable, "-m", "lvskit.hostsetup.decapsulator", self.state, str(exit_)]
        argv += ["--mac", target] if target else []
        argv += map(str, descriptors)
        # The log is beside the state, so that what ended the process can be read afterwards.
        with open(Path(self.state).with_suffix(".log"), "ab") as log:
            started = subprocess.run(
                argv,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[*descriptors, exit_],
                start_new_session=True,  # a terminal's Ctrl-C is not for it
                cwd="/",
            )
        if started.returncode:
            raise DatapathError(f"the decapsulator did not start; see {log.name}")
        return Process.of(int(started.stdout))

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """End the process and remove the device; either may be gone already."""
        lines = []
        if self.process is not None and self.process.running:
            lines.append(Change(text="end the decapsulator", command=f"kill {self.process.pid}"))
            if not dry_run:
                self.process.end()
        if not dry_run:
            Path(self.state).with_suffix(".log").unlink(missing_ok=True)
        if self.way is Way.TUN:
            # The device goes with the process, a moment later.
            _wait_gone(kernel, 0.0 if dry_run else 2.0)
        elif kernel.link(DEVICE) is not None:
            lines.append(Change(text="remove its device", command=f"ip link del {DEVICE}"))
            if not dry_run:
                kernel.delete_link(DEVICE)
        return lines


def _wait_gone(kernel: Netlink, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and kernel.link(DEVICE) is not None:
        time.sleep(0.01)


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _raw_socket(family: int, protocol: int) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    except PermissionError as err:
        raise DatapathError(
            "not permitted to read tunnel packets: this needs CAP_NET_RAW; run it as root"
        ) from err
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
    except PermissionError:
        # Not root of the machine: as much as the machine allows.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    return sock


def _open_tun() -> int:
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as err:
        raise DatapathError(
            f"cannot open /dev/net/tun ({err.strerror}): load the tun module, run as root, or take"
            " the other way, --via veth"
        ) from err
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
    except OSError as err:
        os.close(tun)
        busy = " (somebody else has it open)" if err.errno == errno.EBUSY else ""
        raise DatapathError(f"cannot make the device {DEVICE}: {err.strerror}{busy}") from err
    return tun


def _open_veth(kernel: Netlink) -> int:
    kernel.add_link(DEVICE, "veth", peer={"ifname": FEEDER})
    if read_sysctl(f"net/ipv6/conf/{FEEDER}/addr_gen_mode") is not None:
        write_sysctl(f"net/ipv6/conf/{FEEDER}/addr_gen_mode", "1")
    for name in (DEVICE, FEEDER):
        kernel.set_link(name, mtu=_VETH_MTU, arp=False)
    kernel.set_link(FEEDER, state="up")
    feeder = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    feeder.bind((FEEDER, 0))
    return feeder.detach()
