"""Set up this host for LVS-TUN: real servers that take tunnelled packets, directors' VIPs.

Every function returns the list of what it changed (`Change`), and with `dry_run=True` what it
would change. Nothing here is needed by the packet path; pyroute2 is imported when first used.
"""

from __future__ import annotations

from lvskit.hostsetup.changes import Change
from lvskit.hostsetup.realserver import down, up
from lvskit.hostsetup.vip import add_vip, delete_vip

__all__ = ["Change", "add_vip", "delete_vip", "down", "up"]
