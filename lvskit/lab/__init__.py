"""The lab: a whole LVS-TUN cluster in network namespaces, for root and for ordinary users."""

from __future__ import annotations

from lvskit.lab.cluster import Lab, possible
from lvskit.lab.director import director_command
from lvskit.lab.topology import HOSTS, VIP, VIP6, Host

__all__ = ["HOSTS", "VIP", "VIP6", "Host", "Lab", "director_command", "possible"]
