"""Fragments: what is put together is what was split, and no more is kept than allowed."""

from __future__ import annotations

from fuzzkit import traffic
from fuzzkit.source import Bytes
from fuzzkit.traffic import CLIENTS, Ends
from fuzzkit.world import VIP

from lvskit.core.packet import parse
from lvskit.datapath.reassembly import Reassembler
from lvskit.types import SCTP, TCP, UDP

_LIMIT = 20_000
_MOST = 64


def check(data: bytes) -> None:
    source = Bytes(data)
    kept = Reassembler(_LIMIT)
    now = 0.0
    for number in range(1, _MOST):
        if not source.more():
            break
        version = source.pick((4, 6))
        protocol = source.pick((TCP, UDP, SCTP))
        ends = Ends(protocol, source.pick(CLIENTS[version]), 1024, VIP[version], 80)
        for sent in traffic.sends(source, ends, number):
            parsed = parse(sent.packet)
            if parsed is None or not parsed.fragment:
                continue
            whole = kept.add(sent.packet, now)
            assert kept._held <= _LIMIT
            if whole is not None:
                found = parse(whole)
                assert found is None or not found.fragment
                assert found is None or found.length == len(whole)
                assert whole.largest <= len(whole) + 8
        now += source.pick((0.0, 0.0, 1.0, 29.0, 61.0))
        for first in kept.expired(now):
            assert parse(first) is not None
    assert not kept.expired(now + 100.0) or not kept._queues
    assert not kept._queues
    assert kept._held == 0
