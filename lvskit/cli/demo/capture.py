"""Run on the demo's director: tells, when asked, the last IPIP packet that left it, in hex."""

from __future__ import annotations

import socket
import sys

_ETH_P_IP = 0x0800
_ETH_P_ALL = 0x0003
_IPIP = 4


def main() -> None:
    """Answer questions until the input ends."""
    last = b""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as wire:
        wire.setblocking(False)
        for line in sys.stdin:
            if line.strip() == "ready?":
                print("ready", flush=True)
                continue
            while True:
                try:
                    packet, address = wire.recvfrom(65535)
                except BlockingIOError:
                    break
                outgoing = address[2] == socket.PACKET_OUTGOING
                if outgoing and address[1] == _ETH_P_IP and packet[9] == _IPIP:
                    last = packet
            print(last.hex(), flush=True)


if __name__ == "__main__":
    main()
