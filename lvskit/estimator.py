"""Statistics as listings show them: counters folded, and rates estimated, every two seconds.

Source: Linux net/netfilter/ipvs/ip_vs_est.c, by behaviour: an exponential average with weight
1/4, in fixed point with ten fraction bits for connections and packets, five for bytes.
"""

from __future__ import annotations

from typing import Final

from lvskit.types import Counters, Rates

PERIOD_S: Final = 2.0


class Estimator:
    """Keeps what listings show of one counted thing; `zeroed`: what it had been at the last -Z."""

    __slots__ = ("_averages", "_folded", "zeroed")

    def __init__(self, start: Counters) -> None:
        self._folded = start + Counters()  # a copy: the counters go on
        self.zeroed = Counters()
        self._averages = [0, 0, 0, 0, 0]

    def tick(self, now: Counters) -> None:
        """Fold the counters' present values in; called every `PERIOD_S`."""
        now = now + Counters()  # a copy: the counters go on
        delta = now - self._folded
        values = (delta.conns, delta.inpkts, delta.outpkts, delta.inbytes, delta.outbytes)
        for index, value in enumerate(values):
            rate = value << (9 if index < 3 else 4)  # per second: half of two seconds' worth
            self._averages[index] += (rate - self._averages[index]) >> 2
        self._folded = now

    def zero(self) -> None:
        """Start again from 0 (``-Z``): the counters themselves go on."""
        self.zeroed = self._folded
        self._averages = [0, 0, 0, 0, 0]

    def shown(self) -> Counters:
        """Return the counters as of the last tick, less what was zeroed."""
        return self._folded - self.zeroed

    def rates(self) -> Rates:
        """Return the averages, rounded up as the kernel does."""
        counts, sizes = self._averages[:3], self._averages[3:]
        return Rates(*(n + 0x1FF >> 10 for n in counts), *(n + 0xF >> 5 for n in sizes))
