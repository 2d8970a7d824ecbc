"""What the hosts of the lab serve: small real servers that name the host that answers.

Port 23 greets like telnetd and echoes lines, 22 greets like sshd, 80 speaks HTTP/1.1 (`/` names
the host, `/bytes/N` sends N bytes, a POST's body is read and counted), and UDP port 53 answers
each datagram with the host's name and the datagram.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final

TELNET: Final = 23
SSH: Final = 22
HTTP: Final = 80
UDP: Final = 53

_IP_PKTINFO: Final = 8  # Python has no name for it before 3.12
_CHUNK: Final = 65536
# RFC 854: IAC and an option negotiation, a subnegotiation, or a command.
_TELNET_COMMAND: Final = re.compile(rb"\xff(?:[\xfb-\xfe].|\xfa.*?\xff\xf0|.)", re.DOTALL)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Servers:
    """All servers of one host.

    Args:
        name: how they call themselves.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    async def telnet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greet, and give every line back, until `logout` or the end."""
        writer.write(f"Welcome to {self.name}.\r\n{self.name} login: ".encode())
        while line := _TELNET_COMMAND.sub(b"", await reader.readline()):
            text = line.strip()
            if text in (b"logout", b"exit", b"quit"):
                break
            writer.write(self.name.encode() + b": " + text + b"\r\n")
            await writer.drain()

    async def ssh(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say who is there, as RFC 4253 section 4.2 begins, and listen until the end."""
        writer.write(f"SSH-2.0-lvskit {self.name}\r\n".encode())
        while await reader.read(_CHUNK):
            pass

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the client has no more."""
        while request := await reader.readline():
            method, target, *_ = [*request.decode("latin-1").split(), "/", "/"]
            headers: dict[str, str] = {}
            while line := (await reader.readline()).strip():
                field, _, value = line.decode("latin-1").partition(":")
                headers[field.lower()] = value.strip()
            length = int(headers.get("content-length", "0"))
            if headers.get("expect", "").lower() == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            received = await self._swallow(reader, length)
            closing = headers.get("connection", "").lower() == "close"
            await self._answer(writer, method, target, received, closing=closing)
            if closing:
                break

    async def _swallow(self, reader: asyncio.StreamReader, length: int) -> int:
        received = 0
        while received < length:
            chunk = await reader.read(min(_CHUNK, length - received))
            if not chunk:
                break
            received += len(chunk)
        return received

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        received: int,
        *,
        closing: bool,
    ) -> None:
        size = re.fullmatch(r"/bytes/(\d{1,12})", target)
        if method == "POST":
            body = f"{self.name} received {received} bytes\n".encode()
        else:
            body = f"{self.name}\n".encode()
        length = int(size[1]) if size and method != "POST" else len(body)
        head = [
            "HTTP/1.1 200 OK",
            "Content-Type: text/plain",
            f"Content-Length: {length}",
            f"X-Served-By: {self.name}",
            *(["Connection: close"] if closing else []),
        ]
        writer.write("\r\n".join([*head, "", ""]).encode())
        if method != "HEAD":
            for start in range(0, length, _CHUNK):
                part = body if not size or method == "POST" else b"x" * min(_CHUNK, length - start)
                writer.write(part)
                await writer.drain()
        await writer.drain()

    def datagram(self, sock: socket.socket) -> None:
        """Answer one datagram, from the very address that it came to."""
        with contextlib.suppress(OSError):
            payload, ancillary, _, client = sock.recvmsg(65535, socket.CMSG_SPACE(64))
            kinds = {(socket.IPPROTO_IP, _IP_PKTINFO), (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)}
            # A host of many addresses would answer from its first one, and the client not listen.
            back = [
                (level, kind, _source_only(level, data))
                for level, kind, data in ancillary
                if (level, kind) in kinds
            ]
            sock.sendmsg([self.name.encode() + b" " + payload], back, 0, client)


def _source_only(level: int, info: bytes) -> bytes:
    # The device goes to 0, any: the reply leaves by another one than the request came by, which
    # is the tunnel. IPv4: index, local address, header's address; IPv6: address, index.
    if level == socket.IPPROTO_IP:
        return bytes(4) + info[8:12] + bytes(4)
    return info[:16] + bytes(4)


def listen(port: int, family: int, kind: int) -> socket.socket:
    """Return a socket on every address of one family; IPv6 without IPv4."""
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_DGRAM and family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    elif kind == socket.SOCK_DGRAM:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setblocking(False)
    sock.bind(("", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(1024)
    return sock


def _guarded(handler: Handler) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Clients come and go as they like.
        with contextlib.suppress(OSError, ValueError):
            await handler(reader, writer)
            await writer.drain()
        writer.close()

    return handle


async def serve(servers: Servers, sockets: dict[int, list[socket.socket]]) -> None:
    """Serve on these sockets, by port, until cancelled."""
    loop = asyncio.get_running_loop()
    for sock in sockets[UDP]:
        loop.add_reader(sock, servers.datagram, sock)
    handlers = {TELNET: servers.telnet, SSH: servers.ssh, HTTP: servers.http}
    running = [
        await asyncio.start_server(_guarded(handler), sock=sock, backlog=1024)
        for port, handler in handlers.items()
        for sock in sockets[port]
    ]
    await asyncio.gather(*(server.serve_forever() for server in running))


def main() -> None:
    """Open all ports, print the number of the process that serves them, and leave it to it."""
    parser = argparse.ArgumentParser(prog="lvskit.lab.servers", description=__doc__)
    parser.add_argument("name", help="how the servers call themselves")
    given = parser.parse_args()
    sockets = {
        port: [
            listen(port, family, socket.SOCK_DGRAM if port == UDP else socket.SOCK_STREAM)
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        for port in (TELNET, SSH, HTTP, UDP)
    }
    child = os.fork()
    if child:
        print(child)
        return
    os.setsid()
    os.close(sys.stdout.fileno())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(serve(Servers(given.name), sockets))


if __name__ == "__main__":
    main()
