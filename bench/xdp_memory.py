"""What connections weigh: the part "memory" of ``bench/xdp.py``.

The kernel says what the program's tables take, sized as the daemon sizes them, and what an LRU_HASH
of exactly as many entries takes. The memory of the director and the bridge is what established
connections add to this process, the program's own left out.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.loader import Map, MapSpec, MapType
from lvskit_datapath_xdp.options import XdpOptions
from xdp_connections import flood, world
from xdp_table import Row, Scale, apart, cable

from lvskit.datapath.memory import stack

_UNIT = "bytes per connection"
_KEYS = {4: 8, 6: 24}  # of an LRU_HASH, by IP version; the value has 8 bytes
_AT_ONCE = 20_000


def measure(scale: Scale) -> Iterator[Row]:
    """Yield the rows."""
    count = scale.held
    for version in _KEYS:
        ours, other = apart(tables, count, version)
        yield Row(f"slot, IPv{version}", count, _UNIT, ours, other)
    yield Row("director and bridge", count, _UNIT, apart(process, count))


def tables(count: int, version: int) -> tuple[float, float]:
    """Return what our table and an LRU_HASH for `count` connections take, for each of these."""
    cable("sink", "end")
    engine = Engine(XdpOptions(interface="sink", pins=""), count)
    with Map.create(MapSpec("lru", MapType.LRU_HASH, _KEYS[version], 8, count)) as other:
        return locked(engine.maps[f"connections{version}"]) / count, locked(other) / count


def locked(table: Map) -> int:
    """Return the bytes that a map takes in the kernel."""
    told = Path(f"/proc/self/fdinfo/{table.fd}").read_text()
    return int(re.findall(r"^memlock:\s*(\d+)", told, re.MULTILINE)[0])


def process(count: int) -> float:
    """Return what an established connection adds to the process."""
    world("wlc", 2)  # what comes with the first one, whatever its size
    gc.collect()
    before = resident()
    made = world("wlc", count)
    for start in range(0, count, _AT_ONCE):
        for flags in (stack.SYN, stack.ACK):
            flood(made, range(start, min(start + _AT_ONCE, count)), flags)
            while made.bridge.read():
                pass
    (service,) = made.director.services
    established = sum(server.activeconns for server in service.servers)
    assert established == count, established
    gc.collect()
    return (resident() - before) / count


def resident() -> int:
    """Return the bytes of memory that this process alone has."""
    told = Path("/proc/self/status").read_text()
    return int(re.findall(r"^RssAnon:\s*(\d+) kB", told, re.MULTILINE)[0]) * 1024
