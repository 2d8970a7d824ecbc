"""How large the fragments of a datagram were that the host has put together.

The kernel's ip_vs splits what it forwards as the client had split it (net/ipv4/ip_output.c,
ip_do_fragment: frag_max_size), but a packet queue does not tell that size. So the table copies the
headers of fragments before the host reassembles them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

KEPT_S: Final = 30.0  # net.ipv4.ipfrag_time: the host itself gives up then
_MOST: Final = 4096


class FragmentSizes:
    """The largest fragment of each IPv4 datagram that is incomplete, or waits to be forwarded.

    False while there is none, so that packets pay nothing for it. What does not fit is forgotten,
    oldest first: its datagram is then split only where it must be.
    """

    def __init__(self) -> None:
        self._sizes: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def note(self, fragment: bytes, now: float) -> None:
        """Take note of a fragment: its header, at least."""
        sizes, key = self._sizes, _datagram(fragment)
        while sizes and (len(sizes) >= _MOST or now >= next(iter(sizes.values()))[1] + KEPT_S):
            sizes.popitem(last=False)
        size, since = sizes.get(key, (0, now))
        sizes[key] = max(size, fragment[2] << 8 | fragment[3]), since

    def take(self, packet: bytes) -> int:
        """Return the size of the largest fragment of `packet`, which is whole; 0 = it had none."""
        return self._sizes.pop(_datagram(packet), (0, 0.0))[0]


def _datagram(packet: bytes) -> bytes:
    """Return what fragments of one datagram share (RFC 791, section 3.2)."""
    return packet[4:6] + packet[9:10] + packet[12:20]
