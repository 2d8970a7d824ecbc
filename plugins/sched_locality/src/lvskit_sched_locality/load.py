"""Who is least loaded, most loaded, too busy: the rules that lblc and lblcr share.

Source: Linux net/netfilter/ipvs/ip_vs_lblcr.c and ip_vs.h (ip_vs_dest_conn_overhead), by behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import RealServer


def overhead(server: RealServer) -> int:
    """Return a server's load: 256 for each active connection, and 1 for every connection."""
    return 257 * server.activeconns + server.inactconns


def least_loaded(servers: Iterable[RealServer]) -> RealServer | None:
    """Return the usable server with the least load per weight, the first of equals, or None."""
    best, best_load = None, 0
    for server in servers:
        if server.overloaded or not server.available or server.weight <= 0:
            continue
        load = overhead(server)
        # Loads per weight are compared by cross-multiplication: exact, and no division.
        if best is None or best_load * server.weight > load * best.weight:
            best, best_load = server, load
    return best


def most_loaded(servers: Iterable[RealServer]) -> RealServer | None:
    """Return the server with the most load per weight, the first of equals; None if all weigh 0.

    A removed or overloaded server may well be the one.
    """
    worst, worst_load = None, 0
    for server in servers:
        if server.weight <= 0:
            continue
        load = overhead(server)
        if worst is None or worst_load * server.weight < load * worst.weight:
            worst, worst_load = server, load
    return worst


def too_busy(server: RealServer, servers: Iterable[RealServer]) -> bool:
    """Whether `server` has more active connections than it weighs while another is half idle."""
    return server.activeconns > server.weight and any(
        2 * other.activeconns < other.weight for other in servers
    )
