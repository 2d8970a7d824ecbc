"""How long a new daemon takes to go on with the connections of one that was killed.

The part "adoption" of ``bench/xdp.py`` pins the datapath's program and maps on a BPF file system
of its own, writes connections into them, with and without templates of persistence, kills the
process that did, and starts ``lvskit run``: the time is that of the adoption alone as the daemon
itself says it, then from its first instruction to the word that it is ready, and that of the CPU
until then, which other work on the machine does not prolong.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.names import Names
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.slots import NO_PLACE, Slots4
from lvskit_datapath_xdp.templates import Templates
from xdp_table import Row, Scale, apart

from lvskit import TCP, Director, Route, ServerSettings, ServiceKey, ServiceSettings, load_plugins
from lvskit.core.connection import Template

VIP, HERE = bytes([10, 1, 0, 100]), bytes([10, 1, 0, 1])
SERVERS = 16
ADOPTED_S = 5.0  # at most, for a million connections
_ESTABLISHED = 1
_NEWNET, _NEWNS = 0x40000000, 0x00020000
_CONFIG = """
[director]
datapath = "xdp"
size = {size}
socket = "{place}/control"
datapath_options = {{interface = "near", pins = "{place}/bpf/near"}}

[[service]]
tcp = "10.1.0.100:80"
persistent = {persistent}
{servers}
"""


def measure(scale: Scale) -> Iterator[Row]:
    """Yield the rows."""
    for persistent in (False, True):
        count, times = apart(_adopted, scale.adopted, persistent)
        for what, seconds in times.items():
            most = ADOPTED_S if what == "adopted" else None
            more = ", with templates" if persistent else ""
            yield Row(what + more, count, "seconds", seconds, at_most=most)


def _adopted(count: int, persistent: bool) -> tuple[int, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        _surroundings(place)
        try:
            return _measured(place, count, persistent)
        finally:
            subprocess.run(["umount", "--lazy", str(place / "bpf")], check=True)


def _surroundings(place: Path) -> None:
    """Move into namespaces of our own, with a cable and a BPF file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET | _NEWNS):
        raise SystemExit("needs root: no namespaces can be made")
    (place / "bpf").mkdir()
    for command in (
        "mount --make-rprivate /",
        f"mount -t bpf bpf {place}/bpf",
        "ip link add near type veth peer name far",
        "ip link set far up",
        "ip link set near up",
        "ip address add 10.1.0.1/24 dev near",
    ):
        subprocess.run(command.split(), check=True)


def _measured(place: Path, count: int, persistent: bool) -> tuple[int, dict[str, float]]:
    size = count * 2 if persistent else count
    servers = "".join(f'[[service.server]]\naddress = "10.1.0.{11 + n}"\n' for n in range(SERVERS))
    config = place / "lvskit.toml"
    config.write_text(
        _CONFIG.format(size=size, place=place, servers=servers, persistent=100 * persistent)
    )
    child = os.fork()
    if not child:
        try:
            _fill(place, count, size, persistent)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    began = time.monotonic()
    command = [str(Path(sys.executable).parent / "lvskit"), "run", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        said = []
        for line in daemon.stderr or ():
            said.append(line)
            if "ready" in line:
                break
        ready = time.monotonic() - began
        times = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(") ")[2].split()
        spent = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        daemon.kill()
    told = re.search(r"(\d+) connections go on .*: ([0-9.]+) s", "".join(said))
    if told is None or int(told[1]) < count * 0.999:
        raise SystemExit("".join(said))
    return int(told[1]), {
        "adopted": float(told[2]),
        "ready": ready,
        "ready, CPU": spent,
    }


def _fill(place: Path, count: int, size: int, persistent: bool) -> None:
    """Be a daemon that has so many connections."""
    director = Director(load_plugins(), lambda address: Route(HERE, 1500), size=size)
    key = ServiceKey.of(TCP, VIP, 80)
    director.add_service(key, ServiceSettings(scheduler="rr"))
    engine = Engine(XdpOptions(interface="near", pins=str(place / "bpf" / "near")), size)
    names, numbered = Names(engine.notes["names"]), {}
    for number in range(1, SERVERS + 1):
        address = bytes([10, 1, 0, 10 + number])
        numbered[number] = director.add_server(key, address, None, ServerSettings())
        names.write(number, numbered[number], 0, 0)
    slots = Slots4(engine.maps["connections4"], engine)
    seen = engine.clock(time.monotonic).units(time.monotonic())
    templates = Templates(engine.notes["templates"], director.table)
    for number, (address, port) in enumerate(_clients(count)):
        server = number % SERVERS + 1
        packed = slots.key(address, port, 1)
        binding = server | _ESTABLISHED << 16
        assert slots.insert(*slots.buckets(packed), packed, binding, seen) != NO_PLACE or number
        if persistent:
            kept = Template(TCP, address + VIP + bytes(2) + b"\0\x50", numbered[server], 80)
            kept.deadline, kept.timeout = time.monotonic() + 100, 100.0
            templates.write([kept])
    engine.attach()


def _clients(count: int) -> Iterator[tuple[bytes, bytes]]:
    for number in range(count):
        yield bytes([11, *number.to_bytes(3, "big")]), (1024 + number % 50_000).to_bytes(2, "big")
