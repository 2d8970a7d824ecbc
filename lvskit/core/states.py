"""The TCP, UDP and SCTP state machines with the kernel's transitions.

Source: Linux net/netfilter/ipvs/ip_vs_proto_tcp.c, ip_vs_proto_udp.c and ip_vs_proto_sctp.c, by
behaviour. What moves a state is one byte of the packet: the flags of TCP, the chunk type of SCTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lvskit import types as protocols

NONE, ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT, TIME_WAIT, CLOSE = range(7)
SYNACK: Final = 10
HALF_OPEN: Final = frozenset({SYN_RECV, SYNACK})
"""TCP states of a handshake that is not finished: what a full table sheds first."""
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

INIT_CHUNK: Final = 1
ABORT_CHUNK: Final = 6
COOKIE_CHUNKS: Final = frozenset({10, 11})
CUT_SHORT, BUNDLED_ABORT = 256, 257
"""What stands for that byte where a packet ends before it, which changes no state, and where an
ABORT follows SCTP's first chunk."""
SCTP_HALF_OPEN: Final = frozenset({1, 2})
SCTP_ESTABLISHED: Final = 8
SCTP_CLOSED: Final = 13

Transitions = Sequence[Sequence[int]]
"""For each state, the next state by the byte that moves it."""


@dataclass(frozen=True, slots=True)
class Tables:
    """A protocol's states.

    Attributes:
        names: as listings have them; a state is an index into it.
        active: states whose connections a server counts as active.
        established: the state that assures a persistence template; -1 = none does.
        input: a client's packet where the server's packets pass here too.
        output: a server's packet that passes here: a local server's, for one.
        input_only: a client's packet where the server answers the client directly.
    """

    names: Sequence[str]
    active: frozenset[int]
    established: int
    input: Transitions
    output: Transitions
    input_only: Transitions


class Machine:
    """A protocol's states with the seconds that an idle connection is kept in each."""

    __slots__ = ("tables", "timeouts")

    def __init__(self, tables: Tables, timeouts: list[float]) -> None:
        self.tables = tables
        self.timeouts = timeouts


# --- TCP ---

_TCP_NAMES: Final = (
    "NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
    "LAST_ACK", "LISTEN", "SYNACK",
)  # fmt: skip
_TCP_SHORT: Final = "NO ES SS SR FW TW CL CW LA LI SA".split()
_TCP_ACTIVE: Final = frozenset({ESTABLISHED, SYN_SENT, SYN_RECV, SYNACK})


def _tcp(syn: str, fin: str, ack: str, rst: str) -> Transitions:
    """Return the next states; each argument lists them by the state before.

    Events are told apart in the kernel's order: RST, SYN, FIN, ACK; none of them means CLOSE.
    """
    rows = {
        bit: [_TCP_SHORT.index(word) for word in row.split()]
        for bit, row in ((RST, rst), (SYN, syn), (FIN, fin), (ACK, ack))
    }

    def after(state: int, flags: int) -> int:
        return next((row[state] for bit, row in rows.items() if flags & bit), CLOSE)

    every = range(len(_TCP_NAMES))
    return tuple(bytes([*(after(state, flags) for flags in range(256)), state]) for state in every)


# Columns: the state before, NO ES SS SR FW TW CL CW LA LI SA.
TCP: Final = Tables(
    _TCP_NAMES,
    _TCP_ACTIVE,
    ESTABLISHED,
    _tcp(
        syn="SR ES ES SR SR SR SR SR SR SR SR",
        fin="CL CW SS TW TW TW CL CW LA LI TW",
        ack="ES ES SS ES FW TW CL CW CL LI ES",
        rst="CL CL CL SR CL CL CL CL LA LI SR",
    ),
    _tcp(
        syn="SS ES SS SR SS SS SS SS SS LI SR",
        fin="TW FW SS TW FW TW CL TW LA LI TW",
        ack="ES ES SS ES FW TW CL CW LA ES ES",
        rst="CL CL SS CL CL TW CL CL CL CL CL",
    ),
    _tcp(
        syn="SR ES ES SR SR SR SR SR SR SR SR",
        fin="CL FW SS TW FW TW CL CW LA LI TW",
        ack="ES ES SS ES FW TW CL CW CL LI ES",
        rst="CL CL CL SR CL CL CL CL LA LI CL",
    ),
)
TCP_SECURE: Final = Tables(
    _TCP_NAMES,
    _TCP_ACTIVE,
    ESTABLISHED,
    _tcp(
        syn="SR ES ES SR SR SR SR SR SR SR SA",
        fin="CL CW SS TW TW TW CL CW LA LI SA",
        ack="ES ES SS SR FW TW CL CW CL LI SA",
        rst="CL CL CL SR CL CL CL CL LA LI CL",
    ),
    _tcp(
        syn="SS ES SS SA SS SS SS SS SS LI SA",
        fin="TW FW SS TW FW TW CL TW LA LI TW",
        ack="ES ES SS ES FW TW CL CW LA ES ES",
        rst="CL CL SS CL CL TW CL CL CL CL CL",
    ),
    _tcp(
        syn="SA ES ES SR SA SA SA SA SA SA SA",
        fin="CL FW SS TW FW TW CL CW LA LI TW",
        ack="ES ES SS ES FW TW CL CW CL LI ES",
        rst="CL CL CL SR CL CL CL CL LA LI CL",
    ),
)
"""While the defence secure_tcp is on: a handshake is believed when the server has confirmed it."""


def steady(tables: Tables) -> Sequence[Sequence[bool]]:
    """Return, by state and flags byte, whether a client's packet changes the deadline alone.

    No SYN does, which may reopen a connection; and the direction must not matter.
    """
    return tuple(
        tuple(inward[flags] == only[flags] == state and not flags & SYN for flags in range(256))
        for state, (inward, only) in enumerate(zip(tables.input, tables.input_only, strict=True))
    )


STEADY: Final = steady(TCP)
STEADY_SECURE: Final = steady(TCP_SECURE)

# --- UDP ---

_STILL: Final = (bytes(257),)
UDP: Final = Tables(("UDP",), frozenset(), -1, _STILL, _STILL, _STILL)
"""UDP has one state, and no connection of it counts as active."""

# --- SCTP ---

_SCTP_NAMES: Final = (
    "NONE", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT", "COOKIE", "C-ECHOED", "ESTABLISHED",
    "S-SENT", "S-RECEIVED", "S-ACK-SENT", "REJECTED", "CLOSED",
)  # fmt: skip
_SCTP_SHORT: Final = "NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL".split()
_SCTP_DATA: Final = 0
_SCTP_EVENTS: Final = {1: 1, 2: 2, 6: 9, 7: 5, 8: 6, 9: 8, 10: 3, 11: 4, 14: 7}
"""Events by chunk type, in the order of the arguments of `_sctp`; any other is as DATA."""


def _sctp(*rows: str) -> Transitions:
    """Return the next states; each row lists them by the state before.

    Rows: DATA, INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN
    COMPLETE, ERROR, ABORT.
    """
    events = [[_SCTP_SHORT.index(word) for word in row.split()] for row in rows]
    abort = events[_SCTP_EVENTS[ABORT_CHUNK]]
    return tuple(
        (*(events[_SCTP_EVENTS.get(kind, _SCTP_DATA)][state] for kind in range(256)), state, after)
        for state, after in enumerate(abort)
    )


# Columns: the state before, NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL.
SCTP: Final = Tables(
    _SCTP_NAMES,
    frozenset({SCTP_ESTABLISHED}),
    SCTP_ESTABLISHED,
    _sctp(
        "ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
        "I1 IN IN CS CR CW CO CE ES SS SR SA IN IN",
        "CW CW CW CS CR CO CO CE ES SS SR SA RJ CL",
        "CR IN IN CR CR CW CO CE ES SS SR SA RJ CL",
        "ES I1 IN CS CR CW CO ES ES SS SR SA RJ CL",
        "SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL",
        "CL IN IN CS CR CW CO CE ES CL SR CL RJ CL",
        "CL CL CL CS CR CW CO CE ES SS SR CL RJ CL",
        "CL I1 IN CS CR CW CO CL ES SS SR SA RJ CL",
        "CL CL CL CL CL RJ CL CL CL CL CL CL CL CL",
    ),
    _sctp(
        "ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
        "CW CW CW CW CW CW CW CW ES CW CW CW CW CW",
        "CS CS CS CS CR CW CO CE ES SS SR SA RJ CL",
        "CE CE CE CE CE CE CE CE ES SS SR SA RJ CL",
        "ES ES ES ES ES ES ES ES ES SS SR SA RJ CL",
        "SS SS SS SS SS SS SS SS SS SS SR SA RJ CL",
        "SA SA SA SA SA CW CO CE ES SA SA SA RJ CL",
        "CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
        "CL CL CL CL CL CW CO CE ES SS SR SA RJ CL",
        "CL RJ CL CL CL CL CL CL CL CL CL CL CL CL",
    ),
    _sctp(
        "ES I1 IN CS CR ES CO CE ES SS SR SA RJ CL",
        "I1 IN IN IN IN IN CO CE ES SS SR SA IN IN",
        "CE CE CE CE CE CE CO CE ES SS SR SA RJ CL",
        "ES ES ES ES ES ES CO CE ES SS SR SA RJ CL",
        "ES I1 IN ES ES CW ES ES ES SS SR SA RJ CL",
        "SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL",
        "CL IN IN CS CR CW CO CE CL CL SR CL RJ CL",
        "CL CL CL CL CL CW CO CE ES SS CL CL RJ CL",
        "CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
        "CL CL CL CL CL RJ CL CL CL CL CL CL CL CL",
    ),
)

TABLES: Final = {protocols.TCP: TCP, protocols.UDP: UDP, protocols.SCTP: SCTP}
"""The states of each protocol."""
