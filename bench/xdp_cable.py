"""Packets a second over a cable: the part "cable" of ``bench/xdp.py``.

One CPU does everything: the kernel makes packets of random flows (BPF_F_TEST_XDP_LIVE_FRAMES) and
sends them into a veth, the program at its other end forwards them back by the driver, and a program
at the near end throws them away. Beside it a program that sends everything back as it is: more than
that goes over no cable. What arrives counts, by the CPU time of this process and of the kernel's
thread for packets, in which other work on the machine has no part.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from xdp_packets import ACK, IPV4, IPV6, frame, load
from xdp_table import Row, Scale, apart, cable

_CONTEXT = struct.Struct("<6I")  # struct xdp_md of Linux include/uapi/linux/bpf.h
_UNIT = "packets per CPU second"


def measure(scale: Scale) -> Iterator[Row]:
    """Yield the rows."""
    flows = scale.cable[0]
    yield Row("sent back as it is", flows, _UNIT, best("buckets", "reflects", IPV4, flows, scale))
    for version in (IPV4, IPV6):
        for flows in scale.cable:
            ours, other = (
                best(kind, "forwards", version, flows, scale) for kind in ("buckets", "lru")
            )
            yield Row(f"over a cable, IPv{version}", flows, _UNIT, ours, other)


def best(kind: str, program: str, version: int, flows: int, scale: Scale) -> float:
    """Return the most of several times."""
    return max(
        apart(rate, kind, program, version, flows, scale.repeat) for _ in range(scale.rounds)
    )


def rate(kind: str, program: str, version: int, flows: int, count: int) -> float:
    """Return packets per CPU second."""
    cable("near", "far")
    near, far = socket.if_nametoindex("near"), socket.if_nametoindex("far")
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [cpu])
    kernels = softirqs(cpu)
    packet = frame(version, ACK)
    context = _CONTEXT.pack(0, len(packet), 0, near, 0, 0)
    with load(kind, version, flows, leave_by=far) as loaded:
        programs = loaded.programs
        programs[f"fill{version}"].test_run(packet, repeat=flows)
        source = programs[f"wrapper{version}"]
        # A driver takes what is sent natively only where a program is at the receiving end too.
        with programs["swallows"].attach(near, "native"), programs[program].attach(far, "native"):
            source.test_run(packet, context=context, repeat=count, live=True)
            arrived = loaded.variable("arrived").cast("Q")
            before, began = arrived[0], time.process_time() + ran(kernels)
            source.test_run(packet, context=context, repeat=count, live=True)
            spent = time.process_time() + ran(kernels) - began
            taken = arrived[0] - before
            arrived.release()
    return taken / spent


def softirqs(cpu: int) -> Path | None:
    """Return the thread that takes a CPU's packets while others want the CPU, where one sees it."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            if comm.read_text() == f"ksoftirqd/{cpu}\n":
                return comm.parent
    return None


def ran(thread: Path | None) -> float:
    """Return how long a thread has run, in seconds."""
    return int((thread / "schedstat").read_text().split()[0]) / 1e9 if thread else 0.0
