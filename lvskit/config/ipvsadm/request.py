"""What one line of ipvsadm asks for, and how it ends where it asks for something impossible."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

IPPROTO = {"tcp": 6, "udp": 17, "sctp": 132}
DEFAULT_SCHEDULER = "wlc"


class Stop(Exception):
    """The end of the program, in the middle of ``-R`` too.

    Attributes:
        status: exit status.
        out, err: texts for the two outputs.
    """

    def __init__(self, status: int, err: str = "", out: str = "") -> None:
        super().__init__(err or out)
        self.status = status
        self.out = out
        self.err = err


class Skip(Exception):
    """The end of this line with status 255; ``-R`` goes on with the next."""


@dataclass(slots=True)
class Request:
    """One line, its words taken in and its values read.

    Attributes:
        command: as in `table.COMMANDS`.
        given: options given, as messages name them.
        protocol: tcp, udp, sctp; empty where no service was named. With a mark it is tcp.
        version: IP version of the service's packets; 0 where it was not said.
        address, port, fwmark: of the service; a mark of 0 is none.
        netmask: packed for IPv4, a prefix length for IPv6; None = whole addresses.
        persistent: seconds; 0 = not.
        engine: persistence engine.
        server, server_port: of the real server.
        method: forwarding method, by lvskit's name.
        tunnel, tunnel_port: type of the tunnel; for GUE its port.
        upper, lower: thresholds.
        options: of the scheduler or the forwarding method.
        numbers: what ``--set`` sets: tcp, tcp_fin, udp.
        changes: of settings by name, which ``--set`` makes where it is given names; None takes
            a value back.
    """

    command: str
    given: set[str] = field(default_factory=set)
    protocol: str = ""
    version: int = 0
    address: bytes = b""
    port: int = 0
    fwmark: int = 0
    scheduler: str = ""
    flags: list[str] = field(default_factory=list)
    persistent: int = 0
    netmask: bytes | int | None = None
    one_packet: bool = False
    engine: str = ""
    server: bytes = b""
    server_port: int = 0
    method: str = "droute"
    tunnel: str = "ipip"
    tunnel_port: int = 0
    weight: int = 1
    upper: int = 0
    lower: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[int, int, int] = (0, 0, 0)
    changes: dict[str, int | None] = field(default_factory=dict)

    def name_params(self) -> dict[str, Any]:
        """Return the fields of `lvskit.config.model.Service` that name the service."""
        if self.fwmark:
            return {"fwmark": self.fwmark, "ipv6": self.version == 6}
        return {self.protocol: _endpoint(self.address, self.port)}

    def service_params(self) -> dict[str, Any]:
        """Return the service as `lvskit.config.model.Service` has it."""
        mask = self.netmask
        if isinstance(mask, bytes):
            mask_value: str | int | None = str(ipaddress.ip_address(mask))
        else:
            mask_value = mask
        if mask_value in ("255.255.255.255", 128):
            mask_value = None
        return {
            **self.name_params(),
            "scheduler": self.scheduler,
            "flags": self.flags,
            "options": self.options,
            "persistent": self.persistent,
            "netmask": mask_value,
            "one_packet": self.one_packet,
        }

    def server_params(self) -> dict[str, Any]:
        """Return the real server as `lvskit.config.model.Server` has it."""
        return {
            "address": _endpoint(self.server, self.server_port),
            "weight": self.weight,
            "method": self.method,
            "upper_threshold": self.upper,
            "lower_threshold": self.lower,
            "options": self.options,
        }


def _endpoint(address: bytes, port: int) -> str:
    text = str(ipaddress.ip_address(address))
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"
