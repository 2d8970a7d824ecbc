"""Where the demo plays: a cluster that commands are given to and sessions are opened on."""

from __future__ import annotations

from typing import Protocol

DIRECTOR = "192.168.1.175"
VIP = "192.168.1.176"
SERVERS = {"rs1": "192.168.1.11", "rs2": "192.168.1.12", "rs3": "192.168.1.13"}
CLIENTS = [f"192.168.1.{number}" for number in range(50, 58)]
NAMES = {DIRECTOR: "director", **{address: name for name, address in SERVERS.items()}}
"""Who has which address."""


class Stage(Protocol):
    """A cluster: one director, three real servers, clients.

    Attributes:
        description: what it is made of, for people.
    """

    description: str

    def lvsadm(self, *arguments: str) -> str:
        """Run lvsadm on the director; return all that it printed."""

    def session(self, client: str, port: int) -> str:
        """Open a TCP session from `client` to the VIP, read the greeting, and close it.

        Returns:
            The greeting's first line, which names the host that answered.
        """

    def tunnelled(self) -> bytes | None:
        """Return a tunnelled packet of the last session as a real server got it, if any did."""

    def close(self) -> None:
        """Take everything down."""
