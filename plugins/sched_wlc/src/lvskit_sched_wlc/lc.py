"""Least connection: the server with the fewest connections, whatever its weight.

Source: Linux net/netfilter/ipvs/ip_vs_lc.c, by behaviour. A change of a server is O(log n); see
`LeastLoaded`.
"""

from __future__ import annotations

from lvskit_sched_wlc.wlc import WeightedLeastConnection


class LeastConnection(WeightedLeastConnection):
    """Chooses the least load as wlc counts it; a weight only says whether a server is quiesced."""

    weighted = False
