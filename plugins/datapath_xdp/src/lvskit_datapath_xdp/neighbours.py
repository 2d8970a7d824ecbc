"""Where servers are on the link: routes, and the hardware addresses of next hops, as they change.

The kernel resolves an address, and asks again whether it is still right, when it is told that the
neighbour is in use (NTF_USE), for the packets that XDP sends do not tell it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

_log = logging.getLogger(__name__)

# Linux include/uapi/linux/neighbour.h and rtnetlink.h
_NTF_USE: Final = 1
_REACHABLE, _STALE, _DELAY, _PROBE, _NOARP, _PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
_VALID: Final = _REACHABLE | _STALE | _DELAY | _PROBE | _NOARP | _PERMANENT
_GROUPS: Final = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # links, neighbours, addresses and routes
_ARPHRD_ETHER: Final = 1
_UNICAST: Final = 1  # RTN_UNICAST
_SETTLE_S: Final = 0.01  # changes come in flocks
_AGAIN_S: Final = 5.0  # what is silent: a hop that went stale, a path MTU


class Hop(NamedTuple):
    """The way to an address over the link.

    Attributes:
        ifindex: interface to send from.
        ethernet: destination's and source's hardware address, 12 bytes.
    """

    ifindex: int
    ethernet: bytes


class Neighbours:
    """Follows the next hops of the addresses that are wanted.

    Args:
        changed: called after changes, with no hurry about which.

    Attributes:
        hops: by packed address; one that is not there is not known, or has no Ethernet.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.hops: dict[bytes, Hop] = {}
        self._changed = changed
        self._wanted: frozenset[bytes] = frozenset()
        self._gateways: set[str] = set()
        self._wake = asyncio.Event()

    def want(self, addresses: Iterable[bytes]) -> None:
        """Follow these addresses, and no others."""
        wanted = frozenset(addresses)
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()

    async def run(self) -> None:
        """Follow them until cancelled."""
        from pyroute2 import AsyncIPRoute  # 0.2 s, for those who need it

        async with AsyncIPRoute() as ask, AsyncIPRoute() as ear:
            await ear.bind(_GROUPS)
            listening = asyncio.create_task(self._listen(ear))
            try:
                while True:
                    self._wake.clear()
                    await self._resolve(ask)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), _AGAIN_S)
                        await asyncio.sleep(_SETTLE_S)
            finally:
                listening.cancel()

    async def _listen(self, ear: AsyncIPRoute) -> None:
        while True:  # each time it gives what has come in one piece
            async for message in ear.get():
                # Word of neighbours that nobody asked about is frequent on a large link.
                if message.get("NDA_DST") in self._gateways or "NEIGH" not in message["event"]:
                    self._wake.set()

    async def _resolve(self, ask: AsyncIPRoute) -> None:
        """Ask for all that is wanted, and have the kernel find out what it does not know."""
        links = {link["index"]: link async for link in await ask.link("dump")}
        known = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            async for entry in await ask.neigh("dump", family=family):
                if entry.get("NDA_DST"):
                    known[entry["ifindex"], entry.get("NDA_DST")] = entry
        found = {}
        self._gateways.clear()
        for address in self._wanted:
            try:
                hop = await self._hop(ask, address, links, known)
            except Exception as err:  # pyroute2's errors of netlink have no base of their own
                _log.debug("no way to %s: %s", address.hex(), err)
                continue
            if hop is not None:
                found[address] = hop
        # A path MTU may have changed without a word, so it is always said.
        self.hops.clear()
        self.hops.update(found)
        self._changed()

    async def _hop(
        self, ask: AsyncIPRoute, address: bytes, links: dict[int, Any], known: dict[Any, Any]
    ) -> Hop | None:
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        text = socket.inet_ntop(family, address)
        (route,) = await ask.route("get", dst=text, family=family)
        link = links.get(route.get("RTA_OIF"))
        if link is None or link["ifi_type"] != _ARPHRD_ETHER or route["type"] != _UNICAST:
            return None
        via = route.get("RTA_VIA")
        gateway = via["addr"] if via else route.get("RTA_GATEWAY", text)
        self._gateways.add(gateway)
        entry = known.get((link["index"], gateway))
        state = entry["state"] if entry else 0
        if not state & (_VALID & ~_STALE):
            kind = socket.AF_INET6 if ":" in gateway else socket.AF_INET
            await ask.neigh(
                "replace", dst=gateway, ifindex=link["index"], family=kind, state=0, flags=_NTF_USE
            )
        if entry is None or not state & _VALID or not entry.get("NDA_LLADDR"):
            return None
        macs = entry.get("NDA_LLADDR"), link.get("IFLA_ADDRESS")
        return Hop(link["index"], b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs))
