"""What the control socket tells of one real server, and of what has passed."""

from __future__ import annotations

from lvskit.config.model import Server, server_of
from lvskit.config.status import ServerStatus, Stats
from lvskit.core.service import RealServer
from lvskit.estimator import Estimator
from lvskit.types import Counters


def server_config(server: RealServer) -> Server:
    """Return a server as a configuration has it."""
    return server_of(server.address, server.port, server.settings)


def server_status(server: RealServer) -> ServerStatus:
    """Return a server as it is."""
    stats, rates = figures(server.estimator)
    return ServerStatus(
        config=server_config(server),
        active=server.activeconns,
        inactive=server.inactconns,
        persistent=server.persistconns,
        overloaded=server.overloaded,
        reachable=server.route is not None,
        stats=stats,
        rates=rates,
        counters=passed(server.counters),
    )


def figures(estimator: Estimator) -> tuple[Stats, Stats]:
    """Return what listings show as passed, and as passing per second."""
    rates = estimator.rates()
    per_second = Stats(rates.cps, rates.inpps, rates.outpps, rates.inbps, rates.outbps)
    return passed(estimator.shown()), per_second


def passed(counters: Counters) -> Stats:
    """Return counters as the control socket tells them."""
    return Stats(
        counters.conns, counters.inpkts, counters.outpkts, counters.inbytes, counters.outbytes
    )
