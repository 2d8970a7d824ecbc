"""A simulated network in one process: hosts, links, MTUs and a virtual clock; no privileges."""

from lvskit.datapath.memory.director import DirectorHost, Mark
from lvskit.datapath.memory.network import Host, Network
from lvskit.datapath.memory.server import ClientHost, RealServerHost, Services

__all__ = ["ClientHost", "DirectorHost", "Host", "Mark", "Network", "RealServerHost", "Services"]
