"""Packets a second over a cable: the part "cable" of ``bench/xdp.py``.

One CPU does everything: the kernel makes packets of random flows (BPF_F_TEST_XDP_LIVE_FRAMES) and
sends them into a veth, the program at its other end forwards them back by the driver, and a program
at the near end throws them away. Beside it a program that sends everything back as it is: more than
that goes over no cable. CPU time, in which another process on the machine has no part.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

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
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
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
            before, began = arrived[0], time.process_time()
            source.test_run(packet, context=context, repeat=count, live=True)
            spent = time.process_time() - began
            assert arrived[0] - before >= count * 0.999, "packets were lost on the way"
            arrived.release()
    return count / spent
