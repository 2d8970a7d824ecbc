"""New connections that the program places by rings go where the director alone would put them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from xdp_fast import ACK, FIN, KEYS, RST, SERVERS, SYN, VIP, Fast, director, state, told

from lvskit import UDP, Director, LvskitError, ServerSettings, ServiceSettings
from lvskit.datapath.memory import stack

pytestmark = pytest.mark.usefixtures("bpf")
ADDRESSES = [*SERVERS, bytes([10, 0, 0, 13])]
SCHEDULERS = [
    {"scheduler": "rr"},
    {"scheduler": "wrr"},
    {"scheduler": "dh"},
    {"scheduler": "sh"},
    {"scheduler": "sh", "flags": frozenset({1, 2})},
    {"scheduler": "mh", "options": {"slots": 251}},
    {"scheduler": "mh", "options": {"slots": 251, "fallback": True, "port": True}},
    {"scheduler": "wlc"},
]
SETTINGS = [
    *({"conn_reuse_mode": mode} for mode in range(4)),
    *({"expire_nodest_conn": mode} for mode in range(2)),
    {"drop_packet": 0}, {"drop_packet": 3}, {"sloppy_tcp": 0}, {"sloppy_tcp": 1},
]  # fmt: skip
CLIENT = st.integers(0, 30)
WEIGHT = st.sampled_from([0, 1, 1, 2, 3])
PLACE = st.integers(0, 3)
FLAGS = st.sampled_from([SYN, SYN, SYN, SYN, ACK, FIN | ACK, RST])
PACKETS = st.one_of(
    st.tuples(st.just("tcp"), CLIENT, FLAGS),
    st.tuples(st.just("tcp"), CLIENT, FLAGS),
    st.tuples(st.just("udp"), CLIENT),
    st.tuples(st.just("odd"), CLIENT, st.just(SYN)),
)
COMMANDS = st.one_of(
    st.tuples(st.just("add"), PLACE, WEIGHT),
    st.tuples(st.just("edit"), PLACE, WEIGHT),
    st.tuples(st.just("edit"), PLACE, WEIGHT, st.integers(1, 3)),
    st.tuples(st.just("remove"), PLACE),
    st.tuples(st.just("service"), st.sampled_from(SCHEDULERS), st.sampled_from([0, 0, 60])),
    st.tuples(st.just("tune"), st.sampled_from(SETTINGS)),
)
# To find a shorter example takes longer than a test may.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
# Mostly packets, as it is in life; short lists would hardly ever come to a second choice.
STEPS = st.lists(st.one_of(PACKETS, PACKETS, PACKETS, COMMANDS), min_size=30, max_size=60)


def packet(kind: str, client: int, flags: int = 0) -> bytes:
    """Return a packet of one of some clients; an odd one has an option of IPv4, of no effect."""
    address, port = bytes([198, 51, 100, 7 + client % 5]), 40_000 + client
    if kind == "udp":
        ports = port.to_bytes(2, "big") + (80).to_bytes(2, "big")
        return stack.datagram(address, VIP, UDP, ports + b"\0\x0d\0\0what?")
    plain = stack.tcp((address, port), (VIP, 80), flags, 1, 0)
    if kind == "tcp":
        return plain
    length = (len(plain) + 4).to_bytes(2, "big")
    return b"\x46" + plain[1:2] + length + plain[4:20] + b"\1\1\1\0" + plain[20:]


def carry_out(made: Director, now: float, command: str, *facts: Any) -> None:
    """Give a command about both services; what cannot be is refused."""
    for key in KEYS:
        try:
            if command == "add":
                made.add_server(key, ADDRESSES[facts[0]], None, ServerSettings(weight=facts[1]))
            elif command == "edit":
                place, weight, *upper = facts
                changed = ServerSettings(weight=weight, upper=upper[0] if upper else 0)
                made.edit_server(key, ADDRESSES[place], None, changed)
            elif command == "remove":
                made.remove_server(key, ADDRESSES[facts[0]], None, now)
            elif command == "service":
                chosen, persistence = facts
                made.edit_service(key, ServiceSettings(**chosen, persistence_s=persistence))
            else:
                made.tune(facts[0], key)
        except LvskitError:
            pass


def play(fast: Fast, alone: Director, steps: list[Any]) -> None:
    """Do the same in both, and compare after each step."""
    for name, *facts in steps:
        now = time.monotonic()
        if name in ("tcp", "udp", "odd"):
            sent = packet(name, *facts)
            if name == "odd" and packet("tcp", *facts)[12:24] in alone.table.tcp:
                continue  # what passes the program by does not shorten what the program has seen
            expected = told(alone.receive(sent, now))
            assert fast.take(sent, now) == expected
            fast.servers.count()
        else:
            carry_out(alone, now, name, *facts)
            carry_out(fast.director, now, name, *facts)
            fast.update()
        assert list(state(fast.director)) == list(state(alone))


@pytest.mark.parametrize("number", range(len(SCHEDULERS) - 1))
@given(steps=STEPS)
@settings(max_examples=25, deadline=None, phases=PHASES)
def test_both_ways_are_one(number: int, steps: list[Any]) -> None:
    now = time.monotonic()
    first = ("service", SCHEDULERS[number], 0)
    alone, fast = director("rr", now), Fast("rr", now)
    try:
        play(fast, alone, [first, *steps])
    finally:
        fast.close()
