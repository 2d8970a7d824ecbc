"""States, timeouts and settings of the kernel as documented, typed in for the tests that need them.

Nothing is imported from lvskit. TCP is listed by state, its secure table by what differs from the
ordinary one, SCTP by what moves: each in another form than the code has it.
"""

from __future__ import annotations

TCP, UDP, SCTP = 6, 17, 132

SETTINGS = {
    "am_droprate": 10,
    "amemthresh": 1024,
    "cache_bypass": 0,
    "conn_reuse_mode": 1,
    "drop_entry": 0,
    "drop_packet": 0,
    "expire_nodest_conn": 0,
    "expire_quiescent_template": 0,
    "pmtu_disc": 1,
    "schedule_icmp": 0,
    "secure_tcp": 0,
    "sloppy_sctp": 0,
    "sloppy_tcp": 0,
}
# Name of the setting: protocol, state as listings have it, seconds.
TIMEOUTS = {
    "timeout_none": (TCP, "NONE", 2),
    "timeout_established": (TCP, "ESTABLISHED", 900),
    "timeout_synsent": (TCP, "SYN_SENT", 120),
    "timeout_synrecv": (TCP, "SYN_RECV", 60),
    "timeout_finwait": (TCP, "FIN_WAIT", 120),
    "timeout_timewait": (TCP, "TIME_WAIT", 120),
    "timeout_close": (TCP, "CLOSE", 10),
    "timeout_closewait": (TCP, "CLOSE_WAIT", 60),
    "timeout_lastack": (TCP, "LAST_ACK", 30),
    "timeout_listen": (TCP, "LISTEN", 120),
    "timeout_synack": (TCP, "SYNACK", 120),
    "timeout_udp": (UDP, "UDP", 300),
    "timeout_sctp_none": (SCTP, "NONE", 2),
    "timeout_sctp_init1": (SCTP, "INIT1", 4),
    "timeout_sctp_init": (SCTP, "INIT", 61),
    "timeout_sctp_cookie_sent": (SCTP, "C-SENT", 61),
    "timeout_sctp_cookie_replied": (SCTP, "C-REPLIED", 61),
    "timeout_sctp_cookie_wait": (SCTP, "C-WAIT", 61),
    "timeout_sctp_cookie": (SCTP, "COOKIE", 61),
    "timeout_sctp_cookie_echoed": (SCTP, "C-ECHOED", 61),
    "timeout_sctp_established": (SCTP, "ESTABLISHED", 900),
    "timeout_sctp_shutdown_sent": (SCTP, "S-SENT", 61),
    "timeout_sctp_shutdown_received": (SCTP, "S-RECEIVED", 61),
    "timeout_sctp_shutdown_ack_sent": (SCTP, "S-ACK-SENT", 61),
    "timeout_sctp_rejected": (SCTP, "REJECTED", 4),
    "timeout_sctp_closed": (SCTP, "CLOSED", 61),
}
TIMEOUT_OF = {(protocol, state): name for name, (protocol, state, _) in TIMEOUTS.items()}

# --- TCP ---

EVENTS = (("rst", 0x04), ("syn", 0x02), ("fin", 0x01), ("ack", 0x10))
"""What is looked for in the flags, in this order; a packet with none of them ends in CLOSE."""

# Rows: state before; columns: SYN, FIN, ACK, RST.
_ONE_WAY = {
    "NONE":        ("SYN_RECV",    "CLOSE",      "ESTABLISHED", "CLOSE"),
    "ESTABLISHED": ("ESTABLISHED", "FIN_WAIT",   "ESTABLISHED", "CLOSE"),
    "SYN_SENT":    ("ESTABLISHED", "SYN_SENT",   "SYN_SENT",    "CLOSE"),
    "SYN_RECV":    ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "SYN_RECV"),
    "FIN_WAIT":    ("SYN_RECV",    "FIN_WAIT",   "FIN_WAIT",    "CLOSE"),
    "TIME_WAIT":   ("SYN_RECV",    "TIME_WAIT",  "TIME_WAIT",   "CLOSE"),
    "CLOSE":       ("SYN_RECV",    "CLOSE",      "CLOSE",       "CLOSE"),
    "CLOSE_WAIT":  ("SYN_RECV",    "CLOSE_WAIT", "CLOSE_WAIT",  "CLOSE"),
    "LAST_ACK":    ("SYN_RECV",    "LAST_ACK",   "CLOSE",       "LAST_ACK"),
    "LISTEN":      ("SYN_RECV",    "LISTEN",     "LISTEN",      "LISTEN"),
    "SYNACK":      ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
}  # fmt: skip
_FROM_CLIENT = _ONE_WAY | {
    "ESTABLISHED": ("ESTABLISHED", "CLOSE_WAIT", "ESTABLISHED", "CLOSE"),
    "FIN_WAIT":    ("SYN_RECV",    "TIME_WAIT",  "FIN_WAIT",    "CLOSE"),
    "SYNACK":      ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "SYN_RECV"),
}  # fmt: skip
_FROM_SERVER = {
    "NONE":        ("SYN_SENT",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
    "ESTABLISHED": ("ESTABLISHED", "FIN_WAIT",   "ESTABLISHED", "CLOSE"),
    "SYN_SENT":    ("SYN_SENT",    "SYN_SENT",   "SYN_SENT",    "SYN_SENT"),
    "SYN_RECV":    ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
    "FIN_WAIT":    ("SYN_SENT",    "FIN_WAIT",   "FIN_WAIT",    "CLOSE"),
    "TIME_WAIT":   ("SYN_SENT",    "TIME_WAIT",  "TIME_WAIT",   "TIME_WAIT"),
    "CLOSE":       ("SYN_SENT",    "CLOSE",      "CLOSE",       "CLOSE"),
    "CLOSE_WAIT":  ("SYN_SENT",    "TIME_WAIT",  "CLOSE_WAIT",  "CLOSE"),
    "LAST_ACK":    ("SYN_SENT",    "LAST_ACK",   "LAST_ACK",    "CLOSE"),
    "LISTEN":      ("LISTEN",      "LISTEN",     "ESTABLISHED", "CLOSE"),
    "SYNACK":      ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
}  # fmt: skip
_TCP = {"input": _FROM_CLIENT, "output": _FROM_SERVER, "input_only": _ONE_WAY}

# Direction, event, and the states that move otherwise while secure_tcp is on.
_DIFFERENCES = """
    input       syn  SYNACK>SYNACK
    input       fin  SYNACK>SYNACK
    input       ack  SYN_RECV>SYN_RECV SYNACK>SYNACK
    input       rst  SYNACK>CLOSE
    output      syn  NONE>SYN_SENT SYN_RECV>SYNACK SYNACK>SYNACK
    input_only  syn  NONE>SYNACK FIN_WAIT>SYNACK TIME_WAIT>SYNACK CLOSE>SYNACK CLOSE_WAIT>SYNACK
    input_only  syn  LAST_ACK>SYNACK LISTEN>SYNACK SYNACK>SYNACK
"""

# --- SCTP ---

SCTP_NAMES = {
    "NO": "NONE", "I1": "INIT1", "IN": "INIT", "CS": "C-SENT", "CR": "C-REPLIED", "CW": "C-WAIT",
    "CO": "COOKIE", "CE": "C-ECHOED", "ES": "ESTABLISHED", "SS": "S-SENT", "SR": "S-RECEIVED",
    "SA": "S-ACK-SENT", "RJ": "REJECTED", "CL": "CLOSED",
}  # fmt: skip
"""The states, in the order of their numbers."""
SCTP_EVENTS = {
    1: "init", 2: "init-ack", 6: "abort", 7: "shutdown", 8: "shutdown-ack", 9: "error",
    10: "cookie-echo", 11: "cookie-ack", 14: "shutdown-complete",
}  # fmt: skip
"""By chunk type, RFC 9260 section 3.2; every other chunk is as data."""

# By direction and event: the states that move, and where to. All others stay as they are.
_MOVES = """
    input       data               NO>ES
    input       init               NO>I1 I1>IN RJ>IN CL>IN
    input       init-ack           NO>CW I1>CW IN>CW CW>CO
    input       cookie-echo        NO>CR I1>IN CS>CR
    input       cookie-ack         NO>ES CE>ES
    input       shutdown           NO>SR ES>SR
    input       shutdown-ack       NO>CL I1>IN SS>CL SA>CL
    input       shutdown-complete  NO>CL I1>CL IN>CL SA>CL
    input       error              NO>CL CE>CL
    input       abort              NO>CL I1>CL IN>CL CS>CL CR>CL CW>RJ CO>CL CE>CL ES>CL SS>CL SR>CL
    input       abort              SA>CL RJ>CL
    output      data               NO>ES
    output      init               NO>CW I1>CW IN>CW CS>CW CR>CW CO>CW CE>CW SS>CW SR>CW SA>CW RJ>CW
    output      init               CL>CW
    output      init-ack           NO>CS I1>CS IN>CS
    output      cookie-echo        NO>CE I1>CE IN>CE CS>CE CR>CE CW>CE CO>CE
    output      cookie-ack         NO>ES I1>ES IN>ES CS>ES CR>ES CW>ES CO>ES CE>ES
    output      shutdown           NO>SS I1>SS IN>SS CS>SS CR>SS CW>SS CO>SS CE>SS ES>SS
    output      shutdown-ack       NO>SA I1>SA IN>SA CS>SA CR>SA SS>SA SR>SA
    output      shutdown-complete  NO>CL
    output      error              NO>CL I1>CL IN>CL CS>CL CR>CL
    output      abort              NO>CL I1>RJ IN>CL CS>CL CR>CL CW>CL CO>CL CE>CL ES>CL SS>CL SR>CL
    output      abort              SA>CL RJ>CL
    input_only  data               NO>ES CW>ES
    input_only  init               NO>I1 I1>IN CS>IN CR>IN CW>IN RJ>IN CL>IN
    input_only  init-ack           NO>CE I1>CE IN>CE CS>CE CR>CE CW>CE
    input_only  cookie-echo        NO>ES I1>ES IN>ES CS>ES CR>ES CW>ES
    input_only  cookie-ack         NO>ES CS>ES CR>ES CO>ES CE>ES
    input_only  shutdown           NO>SR ES>SR
    input_only  shutdown-ack       NO>CL I1>IN ES>CL SS>CL SA>CL
    input_only  shutdown-complete  NO>CL I1>CL IN>CL CS>CL CR>CL SR>CL SA>CL
    input_only  error              NO>CL
    input_only  abort              NO>CL I1>CL IN>CL CS>CL CR>CL CW>RJ CO>CL CE>CL ES>CL SS>CL SR>CL
    input_only  abort              SA>CL RJ>CL
"""


def _moves(text: str) -> dict[tuple[str, str, str], str]:
    """Return the state after, by direction, event and state before."""
    found = {}
    for direction, event, *moves in (line.split() for line in text.strip().splitlines()):
        for move in moves:
            before, after = (SCTP_NAMES.get(state, state) for state in move.split(">"))
            found[direction, event, before] = after
    return found


SECURE, SCTP_MOVES = _moves(_DIFFERENCES), _moves(_MOVES)


def after_tcp(direction: str, state: str, flags: int, *, secure: bool = False) -> str:
    """Return the state after a segment with these flags.

    Args:
        direction: "input", "output", or "input_only" where the server answers the client directly.
        state: before it.
        flags: the flags byte.
        secure: while secure_tcp is on.
    """
    event = next((event for event, bit in EVENTS if flags & bit), None)
    if event is None:
        return "CLOSE"
    if secure and (direction, event, state) in SECURE:
        return SECURE[direction, event, state]
    return _TCP[direction][state][("syn", "fin", "ack", "rst").index(event)]


def after_sctp(direction: str, state: str, chunk: int | None) -> str:
    """Return the state after a packet whose first chunk has this type; None: it has no chunk."""
    if chunk is None:
        return state
    return SCTP_MOVES.get((direction, SCTP_EVENTS.get(chunk, "data"), state), state)
