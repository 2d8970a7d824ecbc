"""The state machines against the kernel's tables, typed in a second time from the documentation."""

from __future__ import annotations

import pytest

from lvskit.core import states
from lvskit.core.connection import Connection
from lvskit.core.service import RealServer

# The columns, and the three tables, as documented for Linux ip_vs: rows are events. Two letters
# each: none, established, SYN sent, SYN received, FIN wait, time wait, close, close wait, last ack,
# listen, SYN/ACK.
COLUMNS = ["NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA"]
WORDS = {
    "NO": "NONE", "ES": "ESTABLISHED", "SS": "SYN_SENT", "SR": "SYN_RECV", "FW": "FIN_WAIT",
    "TW": "TIME_WAIT", "CL": "CLOSE", "CW": "CLOSE_WAIT", "LA": "LAST_ACK", "LI": "LISTEN",
    "SA": "SYNACK",
}  # fmt: skip
TABLES = """
| INPUT syn      | SR | ES | ES | SR | SR | SR | SR | SR | SR | SR | SR |
| INPUT fin      | CL | CW | SS | TW | TW | TW | CL | CW | LA | LI | TW |
| INPUT ack      | ES | ES | SS | ES | FW | TW | CL | CW | CL | LI | ES |
| INPUT rst      | CL | CL | CL | SR | CL | CL | CL | CL | LA | LI | SR |
| OUTPUT syn     | SS | ES | SS | SR | SS | SS | SS | SS | SS | LI | SR |
| OUTPUT fin     | TW | FW | SS | TW | FW | TW | CL | TW | LA | LI | TW |
| OUTPUT ack     | ES | ES | SS | ES | FW | TW | CL | CW | LA | ES | ES |
| OUTPUT rst     | CL | CL | SS | CL | CL | TW | CL | CL | CL | CL | CL |
| INPUT_ONLY syn | SR | ES | ES | SR | SR | SR | SR | SR | SR | SR | SR |
| INPUT_ONLY fin | CL | FW | SS | TW | FW | TW | CL | CW | LA | LI | TW |
| INPUT_ONLY ack | ES | ES | SS | ES | FW | TW | CL | CW | CL | LI | ES |
| INPUT_ONLY rst | CL | CL | CL | SR | CL | CL | CL | CL | LA | LI | CL |
"""
ROWS = {
    (direction, event): cells
    for direction, event, *cells in (
        line.replace("|", " ").split() for line in TABLES.strip().splitlines()
    )
}
BITS = {"rst": 0x04, "syn": 0x02, "fin": 0x01, "ack": 0x10}
SECONDS = {
    "NONE": 2, "ESTABLISHED": 900, "SYN_SENT": 120, "SYN_RECV": 60, "FIN_WAIT": 120,
    "TIME_WAIT": 120, "CLOSE": 10, "CLOSE_WAIT": 60, "LAST_ACK": 30, "LISTEN": 120, "SYNACK": 120,
}  # fmt: skip


def event_of(flags: int) -> str | None:
    """Return the event that a flags byte stands for: RST before SYN before FIN before ACK."""
    return next((event for event in ("rst", "syn", "fin", "ack") if flags & BITS[event]), None)


@pytest.mark.parametrize("direction", ["INPUT", "OUTPUT", "INPUT_ONLY"])
@pytest.mark.parametrize("state", range(11), ids=states.TCP.names)
def test_every_transition_for_every_flags_byte(direction: str, state: int) -> None:
    table = getattr(states.TCP, direction.lower())
    for flags in range(256):
        event = event_of(flags)
        wanted = "CLOSE" if event is None else WORDS[ROWS[direction, event][state]]
        assert states.TCP.names[table[state][flags]] == wanted, f"flags {flags:#04x}"


def test_names_and_numbers() -> None:
    """The numbers go over the wire of the kernel's sync protocol."""
    assert list(states.TCP.names) == [WORDS[column] for column in COLUMNS]
    assert states.TCP.names[states.SYNACK] == "SYNACK"
    active = {"ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"}
    assert {states.TCP.names[state] for state in states.TCP.active} == active
    assert {states.TCP.names[state] for state in states.HALF_OPEN} == {"SYN_RECV", "SYNACK"}


def test_steady_is_what_changes_nothing_and_is_no_syn() -> None:
    """The short cut may be taken only where neither table moves the state."""
    for state in range(11):
        for flags in range(256):
            stays = states.TCP.input[state][flags] == states.TCP.input_only[state][flags] == state
            assert states.STEADY[state][flags] == (stays and not flags & 0x02)


def test_names_that_listings_show(server: RealServer) -> None:
    tcp, udp = Connection(6, bytes(12), server, 80), Connection(17, bytes(12), server, 53)
    assert (tcp.state_name, udp.state_name) == ("NONE", "UDP")
    tcp.state = states.FIN_WAIT
    assert tcp.state_name == "FIN_WAIT"
