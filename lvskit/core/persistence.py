"""Persistence templates: a client network keeps its real server for a while.

Source: Linux net/netfilter/ipvs/ip_vs_core.c (ip_vs_sched_persist) and ip_vs_conn.c
(ip_vs_check_template, ip_vs_conn_expire), by behaviour.
"""

from __future__ import annotations

from typing import Final

from lvskit.core.connection import ConnectionTable, Template
from lvskit.core.packet import Parsed
from lvskit.core.service import VirtualService
from lvskit.core.services import FTP
from lvskit.types import IP, Flow

RENEWAL_S: Final = 60.0
"""A template that runs out while connections hang on it gets this long, again and again."""
_RETIRED_PORT: Final = 0xFFFF


def masked(address: bytes, netmask: bytes | None) -> bytes:
    """Return `address` with only the bits that `netmask` has."""
    if netmask is None:
        return address
    value = int.from_bytes(address, "big") & int.from_bytes(netmask, "big")
    return value.to_bytes(len(address), "big")


def template_flow(service: VirtualService, packet: Parsed) -> Flow:
    """Return the flow that the template for `packet` is filed under.

    A service's own port has a template of its own, except FTP's, which spans the data
    connections; a port-0 service shares one over all ports, a fwmark service one over all
    protocols, ports and addresses of the mark.
    """
    client = masked(packet.src, service.settings.netmask)
    protocol, vaddr, vport = packet.protocol, packet.dst, 0
    if packet.dport == service.port:
        if service.port != FTP:
            vport = packet.dport
    elif service.fwmark:
        protocol = IP
        vaddr = service.fwmark.to_bytes(4, "big").ljust(len(packet.dst), b"\0")
    return Flow(protocol, client, 0, vaddr, vport)


def usable(template: Template) -> bool:
    """Whether `template` may still bring clients to its server."""
    server = template.server
    quiescent = server.rules.settings.expire_quiescent_template and not server.weight
    return server.available and not quiescent


def retire(table: ConnectionTable, template: Template) -> None:
    """Make `template` unfindable: it stays, listed with port 65535, until its end."""
    flow = template.flow
    del table.templates[template.protocol][template.key]
    template.key = flow._replace(vport=_RETIRED_PORT).key
    template.dport = _RETIRED_PORT
    table.retired.add(template)
