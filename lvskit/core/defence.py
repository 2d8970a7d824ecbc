"""Which entries and packets the defences give up while the director is under attack.

Source: Linux net/netfilter/ipvs/ip_vs_conn.c (ip_vs_random_dropentry) and ip_vs_ctl.c
(update_defense_level), by behaviour. The kernel counts free memory where lvskit counts free
entries of its bounded table, and visits a random 1/32 of the table each second where lvskit visits
the next 1/32.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from lvskit.core import states
from lvskit.core.connection import Connection, ConnectionTable, Template
from lvskit.types import SCTP, TCP, UDP

PERIOD_S: Final = 1.0
_ROUND: Final = 32
_GRACE_S: Final = 60.0
_FEW: Final = 8
_HALF_OPEN: Final = {TCP: states.HALF_OPEN, SCTP: states.SCTP_HALF_OPEN}


class Defence:
    """The memory of the defences, made at the time `now`; `due` is when they look around next."""

    def __init__(self, now: float) -> None:
        self.due = now + PERIOD_S
        self._next = 0
        self._turns = dict.fromkeys(range(1, _FEW + 1), 0)
        self._packets = 0

    def drops_packet(self, rate: int) -> bool:
        """Whether a packet that would open a connection is one in `rate` to drop."""
        self._packets -= 1
        if self._packets > 0:
            return False
        self._packets = rate
        return True

    def condemned(self, table: ConnectionTable, now: float) -> Iterator[Connection | Template]:
        """Yield the entries to drop among the next 1/32 of the table."""
        start = self._next if self._next < len(table) else 0
        stop = self._next = start - (-len(table) // _ROUND)
        for entry in islice(table, start, stop):
            there = entry.slot is not None and entry.server.service.rules.drop_entry
            if there and self.condemns(entry, now):
                self._next -= 1
                yield entry

    def condemns(self, entry: Connection | Template, now: float) -> bool:
        """Whether an entry, in its turn, is to be dropped."""
        if isinstance(entry, Template):
            if entry.children:
                return False
            if entry.server.service.settings.one_packet:
                return self._idle(entry, entry.timeout, now)
            return not entry.assured
        machine = entry.server.rules.machines[entry.protocol]
        if entry.protocol == UDP or entry.state == machine.tables.established:
            return self._idle(entry, machine.timeouts[entry.state], now)
        return entry.state in _HALF_OPEN[entry.protocol]

    def _idle(self, entry: Connection | Template, timeout: float, now: float) -> bool:
        """Whether an entry without a packet for a minute, and with few in all, has its turn."""
        if now + timeout < entry.deadline + _GRACE_S or not 1 <= entry.packets <= _FEW:
            return False
        self._turns[entry.packets] -= 1
        if self._turns[entry.packets] > 0:
            return False
        self._turns[entry.packets] = entry.packets
        return True
