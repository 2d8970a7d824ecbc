"""How many packets a second the live datapath forwards, and what one costs.

A client, the director and a server, each in a network namespace of its own, joined by veth pairs.
The client floods packets of established flows; the director forwards them in IPIP tunnels; the
server's interface counts them. Run it as root, or as anybody where user namespaces are allowed:

    python bench/live.py [--protocol tcp] [--size 64] [--flows 1000] [--seconds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import os
import platform
import pstats
import socket
import subprocess
import sys
import time
from pathlib import Path

CLIENT, VIP = "10.1.0.2", "10.1.0.1"
DIRECTOR, SERVER = "10.2.0.1", "10.2.0.2"
PORT = 80


def shell(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def namespace() -> subprocess.Popen[bytes]:
    """Start a process that holds a network namespace."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    own = os.stat("/proc/self/ns/net").st_ino
    while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == own:
        time.sleep(0.01)
    return holder


def build(client: subprocess.Popen[bytes], server: subprocess.Popen[bytes]) -> None:
    inside = f"nsenter -t {client.pid} -n ip"
    shell(f"""
        ip link set lo up
        ip link add toclient type veth peer name eth0 netns {client.pid}
        ip link add toserver type veth peer name eth0 netns {server.pid}
        ip address add {VIP}/24 dev toclient && ip link set toclient up
        ip address add {DIRECTOR}/24 dev toserver && ip link set toserver up
        {inside} link set eth0 up && {inside} address add {CLIENT}/24 dev eth0
        nsenter -t {server.pid} -n ip link set eth0 up
        # Nobody has this hardware address: the server's interface counts and discards.
        ip neighbour add {SERVER} lladdr 02:00:00:00:00:01 dev toserver
    """)


def packets(protocol: str, size: int, flows: int, flags: int) -> list[bytes]:
    """Return one packet for each flow."""
    from lvskit.checksums import checksum

    source, target = socket.inet_aton(CLIENT), socket.inet_aton(VIP)
    found = []
    for port in range(1024, 1024 + flows):
        ports = port.to_bytes(2, "big") + PORT.to_bytes(2, "big")
        if protocol == "tcp":
            payload = ports + bytes(8) + bytes((0x50, flags, 16, 0, 0, 0, 0, 0))
        else:
            payload = ports + (size - 20).to_bytes(2, "big") + bytes(2)
        payload = payload.ljust(size - 20, b"\0")
        head = bytes((0x45, 0)) + size.to_bytes(2, "big") + bytes((0, 0, 0x40, 0, 64))
        head += bytes((6 if protocol == "tcp" else 17, 0, 0)) + source + target
        found.append(head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload)
    return found


def flood(protocol: str, size: int, flows: int) -> None:
    """Open the flows, slowly, then send as fast as one core can, until killed."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)
    raw.connect((VIP, 0))
    for flags in (0x02, 0x10) if protocol == "tcp" else (0,):
        for packet in packets(protocol, size, flows, flags):
            raw.send(packet)
            time.sleep(0.0002)
    ready, send = packets(protocol, size, flows, 0x18), raw.send
    while True:
        for packet in ready:
            with contextlib.suppress(OSError):
                send(packet)


def interface_count() -> int:
    """Return the packets that left towards the server."""
    text = subprocess.run(
        ["ip", "-s", "-j", "link", "show", "toserver"], capture_output=True, check=True
    )
    return int(json.loads(text.stdout)[0]["stats64"]["tx"]["packets"])


async def measure(options: argparse.Namespace, client_pid: int) -> dict[str, object]:
    from lvskit import Director, load_plugins
    from lvskit.datapath.live import LiveDatapath
    from lvskit.settings import ServerSettings, ServiceKey, ServiceSettings

    datapath = LiveDatapath()
    director = Director(load_plugins(), datapath.routes, now=time.monotonic())
    datapath.attach(director)
    key = ServiceKey.of(6 if options.protocol == "tcp" else 17, socket.inet_aton(VIP), PORT)
    director.add_service(key, ServiceSettings(scheduler="rr"))
    director.add_server(key, socket.inet_aton(SERVER), None, ServerSettings())
    datapath.services_changed([key])
    running = asyncio.create_task(datapath.run())
    await asyncio.sleep(0.2)
    flooder = await asyncio.create_subprocess_exec(
        "nsenter", "-t", str(client_pid), "-n", sys.executable, __file__, "--flood",
        "--protocol", options.protocol, "--size", str(options.size), "--flows", str(options.flows),
    )  # fmt: skip
    try:
        await asyncio.sleep(1.5 + options.flows * 0.001)
        profile = cProfile.Profile() if options.profile else None
        before = (time.perf_counter(), time.process_time(), datapath.received, interface_count())
        lost = datapath.losses()
        if profile:
            profile.enable()
        await asyncio.sleep(options.seconds)
        if profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(14)
        after = (time.perf_counter(), time.process_time(), datapath.received, interface_count())
        lost_since = {name: n - lost[name] for name, n in datapath.losses().items()}
    finally:
        flooder.kill()
        await flooder.wait()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    wall, cpu, received, sent = (b - a for a, b in zip(before, after, strict=True))
    return {
        "protocol": options.protocol,
        "size": options.size,
        "flows": len(director.table),
        "seconds": round(wall, 2),
        "packets_per_s": round(received / wall),
        "sent_per_s": round(sent / wall),
        "cpu_us_per_packet": round(cpu / received * 1e6, 2),
        "lost": lost_since,
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=("tcp", "udp"), default="tcp")
    parser.add_argument("--size", type=int, default=64, help="bytes of a client's IP datagram")
    parser.add_argument("--flows", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument("--flood", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        flood(options.protocol, options.size, options.flows)
    if not options.inside:
        # Root of a user namespace may not have buffers above the system's bounds.
        kind = "-n" if os.geteuid() == 0 else "-Urn"
        os.execvp("unshare", ["unshare", kind, sys.executable, *sys.argv, "--inside"])
    holders = [namespace(), namespace()]
    try:
        build(*holders)
        figures = asyncio.run(measure(options, holders[0].pid))
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
    print(
        f"{figures['packets_per_s']:,} packets/s, {figures['cpu_us_per_packet']} µs of CPU each "
        f"({figures['protocol']}, {figures['size']} bytes, {figures['flows']} flows); "
        f"lost: {figures['lost']}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
