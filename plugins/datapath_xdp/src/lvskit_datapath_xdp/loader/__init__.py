"""Loads BPF objects for XDP into the kernel: standard library only, Linux on x86-64 and arm64.

>>> obj = BpfObject.read("balancer.bpf.o")                     # doctest: +SKIP
>>> obj.rodata["LIMIT"] = 5                                    # doctest: +SKIP
>>> obj.maps["slots"].max_entries = 1 << 20                    # doctest: +SKIP
>>> with obj.load() as loaded:                                 # doctest: +SKIP
...     slots = loaded.maps["slots"].mmap()  # a writable memoryview
...     ring = RingBuffer(loaded.maps["misses"])
...     with loaded.programs["balancer"].attach(2, "native"):
...         for record in ring.read():  # memoryviews, not copies
...             print(bytes(record))
...         ring.release()
"""

from __future__ import annotations

from lvskit_datapath_xdp.loader.bpfobject import BpfObject, Loaded
from lvskit_datapath_xdp.loader.features import problems
from lvskit_datapath_xdp.loader.maps import Map, Update
from lvskit_datapath_xdp.loader.mapspec import MapFlags, MapSpec, MapType
from lvskit_datapath_xdp.loader.program import Link, LinkInfo, Mode, Program, ProgramInfo, TestRun
from lvskit_datapath_xdp.loader.ringbuf import RingBuffer
from lvskit_datapath_xdp.loader.syscall import BpfError

__all__ = [
    "BpfError",
    "BpfObject",
    "Link",
    "LinkInfo",
    "Loaded",
    "Map",
    "MapFlags",
    "MapSpec",
    "MapType",
    "Mode",
    "Program",
    "ProgramInfo",
    "RingBuffer",
    "TestRun",
    "Update",
    "problems",
]
