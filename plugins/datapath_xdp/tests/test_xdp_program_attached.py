"""The program on an interface: what it sends arrives, what it passes on reaches the stack."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from typing import Any

import pytest
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.loader import Mode
from lvskit_datapath_xdp.options import XdpOptions
from scapy.layers import inet
from scapy.layers.l2 import Ether
from xdp_kernel import Kernel
from xdp_world import (
    CLIENT4,
    ES,
    IN4,
    MAC_HERE,
    TCP4,
    ip4,
    outer4,
    populate,
    raw,
    sent,
    tcp,
    tunnel,
)

Veth = Any

ALL = 0x0003  # ETH_P_ALL


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_packets_of_a_known_connection_come_back_encapsulated(
    kernel: Kernel, veth: Veth, mode: Mode
) -> None:
    populate(kernel)
    kernel.server(IN4, tunnel(4, ifindex=veth.near))
    program = kernel.loaded.programs["lvskit"]
    with ExitStack() as stack:
        stack.enter_context(program.attach(veth.near, mode))
        # A native XDP_TX into a veth arrives only where the other end has a program too.
        stack.enter_context(program.attach(veth.far, mode))
        wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        wire.bind((veth.far_name, ALL))
        wire.settimeout(5)
        kernel.connect(CLIENT4, 1024, TCP4, IN4, ES)
        wire.send(raw(ip4() / tcp("A", size=400)))
        expected = sent(outer4(), ip4() / tcp("A", size=400))
        while (frame := wire.recv(2048)) != expected:
            assert Ether(frame).dst != MAC_HERE or inet.IP not in Ether(frame), "sent otherwise"


@pytest.mark.integration
def test_what_is_passed_reaches_the_stack(kernel: Kernel, veth: Veth) -> None:
    populate(kernel)
    with ExitStack() as stack:
        stack.enter_context(kernel.loaded.programs["lvskit"].attach(veth.near, "native"))
        near = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        near.bind((veth.near_name, ALL))
        near.settimeout(5)
        far = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        far.bind((veth.far_name, 0))
        opening, ping = raw(ip4() / tcp("S")), raw(ip4() / inet.ICMP())
        far.send(opening)  # this is Python's, and the stack does not see it
        far.send(ping)
        while (frame := near.recv(2048)) != ping:
            assert frame != opening
        (record,) = kernel.records()
        assert record.packet == opening[14:]


@pytest.mark.integration
def test_a_new_hardware_address_is_followed(veth: Veth) -> None:
    def change(command: str) -> None:
        subprocess.run(["ip", "link", *command.split()], check=True)

    def address() -> str:
        parts = [bytes(engine._loaded.variable(name)) for name in ("here", "here_end")]
        return b"".join(parts).hex(":")

    change("set near address 02:00:00:00:00:76")
    engine = Engine(XdpOptions(interface=veth.near_name), 64)
    try:
        assert address() == "02:00:00:00:00:76"
        change("set near address 02:00:00:00:00:77")
        engine.follow_address()
        assert address() == "02:00:00:00:00:77"
        change("delete near")
        engine.follow_address()
        assert address() == "02:00:00:00:00:77"
    finally:
        engine.close()
