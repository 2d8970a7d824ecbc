"""Very many connections at once: a server that names itself and echoes, and a client of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xdp_network import VIP, Host, Network, until

CROWD_PORT = 81

_FILES = """
import asyncio, json, resource, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
"""

_SERVER = (
    _FILES
    + """
name, port = sys.argv[1].encode(), int(sys.argv[2])

async def talk(reader, writer):
    writer.write(name + b"\\n")
    while line := await reader.readline():
        writer.write(line)
    writer.close()

async def main():
    server = await asyncio.start_server(talk, "0.0.0.0", port, backlog=4096)
    await server.serve_forever()

asyncio.run(main())
"""
)

# For each line of its input, which is a command, one of output: how many connections did it, by
# their server's name or the error.
_CLIENT = (
    _FILES
    + """
from collections import Counter
vip, port = sys.argv[1], int(sys.argv[2])
peers, enough = [], asyncio.Event()

async def begin(number, few):
    async with few:
        reader, writer = await asyncio.open_connection(vip, port)
        name = (await reader.readline()).decode().strip()
        peers.append((number, name, reader, writer))
        return name

async def ask(number, name, reader, writer):
    said = b"%d" % number * 40 + b"\\n"
    writer.write(said)
    return name if await reader.readline() == said else "another answer"

async def keep_asking(*peer):
    while not enough.is_set():
        if (said := await ask(*peer)) != peer[1]:
            return said
        await asyncio.sleep(0.5)
    return peer[1]

async def end(number, name, reader, writer):
    writer.close()
    await writer.wait_closed()
    return name

async def main():
    while command := await asyncio.to_thread(sys.stdin.readline):
        word, *rest = command.split()
        if word == "open":
            few = asyncio.Semaphore(256)
            work = [begin(number, few) for number in range(int(rest[0]))]
        else:
            work = [{"ask": ask, "talk": keep_asking, "end": end}[word](*peer) for peer in peers]
        enough.clear()
        done = asyncio.gather(*work, return_exceptions=True)
        if word == "talk":
            await asyncio.to_thread(sys.stdin.readline)
            enough.set()
        done = await done
        print(json.dumps(Counter(map(str, done))), flush=True)

asyncio.run(main())
"""
)


class Crowd:
    """A client with very many connections."""

    def __init__(self, host: Host) -> None:
        command = [sys.executable, "-c", _CLIENT, VIP, str(CROWD_PORT)]
        self._process = host.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def _do(self, command: str) -> dict[str, int]:
        self._tell(command)
        assert self._process.stdout is not None
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found

    def open(self, count: int) -> dict[str, int]:
        """Open connections; return how many there are to each server, or why there are not."""
        return self._do(f"open {count}")

    def ask(self) -> dict[str, int]:
        """Have each of them say something; return how many have had the same back, by server."""
        return self._do("ask")

    def talk(self) -> None:
        """Have each of them say something twice a second, until `hush`."""
        self._tell("talk")

    def hush(self) -> dict[str, int]:
        """Have them say no more; return how many always had the same back."""
        return self._do("enough")

    def end(self) -> dict[str, int]:
        """Close them all."""
        return self._do("end")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def crowd(network: Network) -> Iterator[Crowd]:
    """Start the servers, and a client."""
    for host in network.servers:
        host.start(sys.executable, "-c", _SERVER, host.name, str(CROWD_PORT))
    until(lambda: all(f":{CROWD_PORT}" in h.run("ss -Hltn") for h in network.servers), 10)
    made = Crowd(network.client)
    try:
        yield made
    finally:
        made.close()


def counts(status: dict[str, Any]) -> tuple[int, int]:
    """Return active and inactive connections of the first service, as a listing has them."""
    servers = status["services"][0]["servers"]
    active, inactive = (sum(each.get(n, 0) for each in servers) for n in ("active", "inactive"))
    return active, inactive
