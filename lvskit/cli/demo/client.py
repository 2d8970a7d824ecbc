"""Run on the demo's client host: opens the sessions that it is told to, one a line.

A line is JSON, `[client address, port]`; the answer is the first line that the server said.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys

from lvskit.cli.demo.stage import VIP

_PATIENCE_S = 5.0


def _greeting(client: str, port: int) -> str:
    """Open a session from `client`, read what the server says first, and close it."""
    try:
        with socket.create_connection((VIP, port), _PATIENCE_S, (client, 0)) as session:
            said = b""
            while b"\n" not in said and (more := session.recv(256)):
                said += more
    except OSError as err:
        return f"no answer ({err})"
    return said.decode(errors="replace").strip().partition("\n")[0].strip()


def main(clients: list[str]) -> None:
    """Take the clients' addresses, then open sessions until the input ends."""
    from lvskit.hostsetup.netlink import Netlink

    with Netlink() as kernel:
        link = kernel.link("eth0")
        if link is None:
            raise SystemExit("this host has no eth0")
        for address in clients[1:]:  # the first is the host's own
            kernel.add_address(ipaddress.IPv4Address(address), 24, link)
    for line in sys.stdin:
        answer = "ready" if line.strip() == "ready?" else _greeting(*json.loads(line))
        print(answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
