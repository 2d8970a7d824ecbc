"""The live datapath: any Linux with nftables and nfnetlink_queue, no ip_vs module.

The virtual addresses are addresses of the director; their packets are taken from the input hook,
where ip_vs stands too, and leave by raw sockets.
"""

from __future__ import annotations

from lvskit.datapath.live.datapath import LiveDatapath, LiveOptions
from lvskit.datapath.live.rules import remove_rules

__all__ = ["LiveDatapath", "LiveOptions", "remove_rules"]
