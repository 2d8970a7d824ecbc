"""The TCP and UDP state machines with the kernel's transitions and default timeouts.

Source: Linux net/netfilter/ipvs/ip_vs_proto_tcp.c and ip_vs_proto_udp.c, by behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NAMES: Final = (
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
)
"""Names of the eleven TCP states; a state is an index into this tuple."""

NONE, ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT, TIME_WAIT, CLOSE = range(7)
SYNACK: Final = 10
ACTIVE: Final = frozenset({ESTABLISHED, SYN_SENT, SYN_RECV, SYNACK})
"""States whose connections a server counts as active."""
HALF_OPEN: Final = frozenset({SYN_RECV, SYNACK})
"""States of a handshake that is not finished: what a full table sheds first."""

UDP_NAME: Final = "UDP"
"""The one state of a UDP connection, as listings name it."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class Timeouts:
    """Seconds that an idle connection is kept, per TCP state and for UDP.

    Attributes:
        tcp: by state, in the order of `NAMES`.
        udp: for UDP.
    """

    __slots__ = ("tcp", "udp")

    def __init__(self) -> None:
        self.tcp = [2.0, 900.0, 120.0, 60.0, 120.0, 120.0, 10.0, 60.0, 30.0, 120.0, 120.0]
        self.udp = 300.0

    def set(self, tcp: float, tcp_fin: float, udp: float) -> None:
        """Set ESTABLISHED, FIN_WAIT and UDP (``--set``); 0 keeps a value."""
        self.tcp[ESTABLISHED] = tcp or self.tcp[ESTABLISHED]
        self.tcp[FIN_WAIT] = tcp_fin or self.tcp[FIN_WAIT]
        self.udp = udp or self.udp


Transitions = Sequence[bytes]
"""For each state, the next state by the value of the flags byte."""

_SHORT = {
    "NO": 0, "ES": 1, "SS": 2, "SR": 3, "FW": 4, "TW": 5, "CL": 6, "CW": 7, "LA": 8, "LI": 9,
    "SA": 10,
}  # fmt: skip


def _table(syn: str, fin: str, ack: str, rst: str) -> Sequence[bytes]:
    """Return, for each state, the next state for each of the 256 values of the flags byte.

    Events are told apart in the kernel's order: RST, SYN, FIN, ACK; none of them means CLOSE.
    """
    events = [[_SHORT[word] for word in row.split()] for row in (syn, fin, ack, rst)]

    def after(state: int, flags: int) -> int:
        for bit, event in ((RST, 3), (SYN, 0), (FIN, 1), (ACK, 2)):
            if flags & bit:
                return events[event][state]
        return CLOSE

    return tuple(bytes(after(state, flags) for flags in range(256)) for state in range(len(NAMES)))


# Columns: the state before, in the order of NAMES.
INPUT: Final = _table(
    syn="SR ES ES SR SR SR SR SR SR SR SR",
    fin="CL CW SS TW TW TW CL CW LA LI TW",
    ack="ES ES SS ES FW TW CL CW CL LI ES",
    rst="CL CL CL SR CL CL CL CL LA LI SR",
)
"""A client's packet on a connection whose server's packets pass here too."""
OUTPUT: Final = _table(
    syn="SS ES SS SR SS SS SS SS SS LI SR",
    fin="TW FW SS TW FW TW CL TW LA LI TW",
    ack="ES ES SS ES FW TW CL CW LA ES ES",
    rst="CL CL SS CL CL TW CL CL CL CL CL",
)
"""A server's packet that passes here: a local server's, for one."""
INPUT_ONLY: Final = _table(
    syn="SR ES ES SR SR SR SR SR SR SR SR",
    fin="CL FW SS TW FW TW CL CW LA LI TW",
    ack="ES ES SS ES FW TW CL CW CL LI ES",
    rst="CL CL CL SR CL CL CL CL LA LI CL",
)
"""A client's packet on a connection whose server answers the client directly."""

STEADY: Final = tuple(
    tuple(
        INPUT[state][flags] == INPUT_ONLY[state][flags] == state and not flags & SYN
        for flags in range(256)
    )
    for state in range(len(NAMES))
)
"""By state and flags byte: the packet changes nothing but the deadline (a SYN may reopen)."""
