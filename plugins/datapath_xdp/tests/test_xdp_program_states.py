"""TCP states in the program: every state, every flags byte, against the Director's table."""

from __future__ import annotations

import pytest
from lvskit_datapath_xdp.layout import (
    NO_SLOT,
    Reason,
    RecordKind,
    ServiceFlag,
    SlotFlag,
)
from xdp_kernel import VERDICTS, Kernel
from xdp_world import CLIENT4, CLIENT6, IN4, NONE, TCP4, TCP6, VIP4, ip4, ip6, populate, raw, tcp

from lvskit.core import states

DROP, TX = VERDICTS.index("DROP"), VERDICTS.index("TX")
STATES = range(len(states.TCP.names))
REOPENED = {states.FIN_WAIT, states.TIME_WAIT, states.CLOSE}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("state", STATES, ids=states.TCP.names)
def test_every_flags_byte_moves_it_as_the_director_does(
    kernel: Kernel, state: int, version: int
) -> None:
    populate(kernel)
    client, service = (CLIENT4, TCP4) if version == 4 else (CLIENT6, TCP6)
    packet = bytearray(raw((ip4() if version == 4 else ip6()) / tcp("A")))
    at = 14 + (20 if version == 4 else 40) + 13
    slot = kernel.connect(client, 1024, service, IN4, state)
    memory = kernel.tables[version]
    blank = bytes(memory)
    for flags in range(256):
        memory[:] = blank
        packet[at] = flags
        came = kernel.send(bytes(packet))
        after = kernel.slot(version, slot)[4]
        if flags & states.SYN and state in REOPENED:
            assert (came.verdict, after) == ("DROP", state)
            (record,) = came.records
            assert record.kind == RecordKind.MISS
            continue
        expected = states.TCP.input_only[state][flags]
        assert (came.verdict, after) == ("TX", expected), flags
        told = [(r.kind, r.old_state, r.state, r.tcp_flags, r.slot) for r in came.records]
        change = (RecordKind.STATE, state, expected, flags, slot)
        assert told == ([change] if state != expected else [])
        assert came.reasons == ({Reason.STATE: 1} if state != expected else {})


def test_a_state_that_there_is_not_harms_nothing(kernel: Kernel) -> None:
    """What the memory holds is not trusted either."""
    populate(kernel)
    slot = kernel.connect(CLIENT4, 1024, TCP4, IN4, 255)
    assert kernel.send(raw(ip4() / tcp("A"))).verdict == "TX"
    assert kernel.slot(4, slot)[4] == NONE


def test_a_change_without_room_for_its_record_waits(kernel: Kernel) -> None:
    """The packet is dropped, so that the client sends it again; nothing has changed."""
    populate(kernel)
    slot = kernel.connect(CLIENT4, 1024, TCP4, IN4, states.ESTABLISHED, seen=5)
    fill(kernel)
    before = kernel.slot(4, slot)
    frame = raw(ip4() / tcp("FA"))
    assert kernel.loaded.programs["lvskit"].test_run(frame).verdict == DROP
    assert kernel.slot(4, slot) == before
    assert kernel.counted("server", IN4) == (0, 0)
    kernel.records()
    again = kernel.send(frame)
    assert (again.verdict, len(again.records)) == ("TX", 1)
    assert kernel.slot(4, slot)[4] == states.FIN_WAIT


def test_a_miss_without_room_is_dropped_and_counted(kernel: Kernel) -> None:
    populate(kernel)
    fill(kernel)
    lost = kernel.reasons()[Reason.LOST]
    for packet in (tcp("S"), tcp("S", size=200)):
        assert kernel.loaded.programs["lvskit"].test_run(raw(ip4() / packet)).verdict == DROP
    assert kernel.reasons()[Reason.LOST] == lost + 2
    kernel.records()
    (record,) = kernel.send(raw(ip4() / tcp("S"))).records
    assert (record.kind, record.slot) == (RecordKind.SYN, NO_SLOT)


def test_the_next_packet_is_told_where_python_wants_it(kernel: Kernel) -> None:
    populate(kernel)
    flags = SlotFlag.TELL | SlotFlag.ONE
    slot = kernel.connect(CLIENT4, 1024, TCP4, IN4, states.ESTABLISHED, flags=flags)
    came = kernel.send(raw(ip4() / tcp("A")))
    (record,) = came.records
    assert (came.verdict, record.kind, record.slot) == ("TX", RecordKind.STATE, slot)
    assert record.state == record.old_state == states.ESTABLISHED
    assert kernel.slot(4, slot)[5] == 2 * SlotFlag.ONE
    assert kernel.send(raw(ip4() / tcp("A"))).records == []


def test_and_still_is_where_there_was_no_room_to_tell(kernel: Kernel) -> None:
    populate(kernel)
    slot = kernel.connect(CLIENT4, 1024, TCP4, IN4, states.ESTABLISHED, flags=SlotFlag.TELL)
    fill(kernel)
    assert kernel.loaded.programs["lvskit"].test_run(raw(ip4() / tcp("A"))).verdict == TX
    assert kernel.slot(4, slot)[5] & SlotFlag.TELL
    kernel.records()
    assert len(kernel.send(raw(ip4() / tcp("A"))).records) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_the_first_packets_are_counted(kernel: Kernel, version: int) -> None:
    populate(kernel)
    client, service = (CLIENT4, TCP4) if version == 4 else (CLIENT6, TCP6)
    slot = kernel.connect(client, 1024, service, IN4, states.SYN_RECV)
    frame = raw((ip4() if version == 4 else ip6()) / tcp("A"))
    counts = []
    for _ in range(18):
        kernel.send(frame)
        counts.append(kernel.slot(version, slot)[5])
    assert counts == [SlotFlag.ONE * min(number, 16) for number in range(1, 19)]
    assert SlotFlag.ONE * 16 == SlotFlag.MANY


def test_where_marks_matter_only_known_connections_are_forwarded(kernel: Kernel) -> None:
    populate(kernel)
    kernel.service(TCP4, VIP4, 80, 6, flags=ServiceFlag.MARKS)
    kernel.place(TCP4, [IN4])
    assert kernel.send(raw(ip4() / tcp("S"))).reasons == {Reason.NOT_OPENING: 1}
    slot = kernel.connect(CLIENT4, 1024, TCP4, IN4, states.ESTABLISHED)
    assert kernel.send(raw(ip4() / tcp("R"))).verdict == "TX"
    assert kernel.send(raw(ip4() / tcp("S"))).reasons == {Reason.NOT_OPENING: 1}
    # When it ends is Python's affair now.
    assert kernel.slot(4, slot)[4:6] == (states.CLOSE, SlotFlag.TELL | SlotFlag.ONE)


def fill(kernel: Kernel) -> None:
    """Leave no room for another record, of whichever length."""
    for size in (1900, 0):
        frame = raw(ip4(src="203.0.113.9") / tcp("S", size=size))
        kernel.loaded.programs["lvskit"].test_run(frame, repeat=2000)
    # State records are shorter still.
    kernel.connect("203.0.113.8", 1024, TCP4, IN4, states.SYN_RECV)
    memory = kernel.tables[4]
    blank = bytes(memory)
    frame = raw(ip4(src="203.0.113.8") / tcp("A"))
    while kernel.loaded.programs["lvskit"].test_run(frame).verdict == TX:
        memory[:] = blank
