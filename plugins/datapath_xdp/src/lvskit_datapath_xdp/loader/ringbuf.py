"""The reading end of a BPF ring buffer: records as the program wrote them, without a copy."""

from __future__ import annotations

import contextlib
import mmap
from typing import Final

from lvskit_datapath_xdp.loader.maps import Map
from lvskit_datapath_xdp.loader.mapspec import MapType
from lvskit_datapath_xdp.loader.syscall import BpfError

# Linux include/uapi/linux/bpf.h; a record is a header of 8 bytes, whose first 4 are this and its
# length, and its content.
_BUSY: Final = 1 << 31  # reserved, not yet submitted
_DISCARDED: Final = 1 << 30
_LENGTH: Final = _DISCARDED - 1
_HEADER_SIZE: Final = 8


class RingBuffer:
    """Reads the records of a map of type RINGBUF; one reader, one thread at a time.

    The kernel maps the memory twice in a row, so a record that wraps around is whole. Read a batch,
    use it, then `release` it: from then on the program writes over it.

    Order of memory: the program publishes its position after the length and a record's length after
    its content. x86 reads in order. ARM may not, unless one read's address depends on the other's
    result, and so the places of records are computed from their lengths' words here.

    Attributes:
        memory: all of it, twice, read-only, behind a page of the kernel's; what `offsets` counts
            in. A slice is a copy. halves: the same as numbers of 16 bits.
    """

    def __init__(self, map_: Map) -> None:
        if map_.spec.type != MapType.RINGBUF:
            raise BpfError(0, f"the map {map_.name} is no ring buffer")
        self.map = map_
        self.size = map_.spec.max_entries
        page = mmap.PAGESIZE
        # Linux kernel/bpf/ringbuf.c ringbuf_map_mmap_kern: the reader's position alone is writable.
        mine = mmap.mmap(map_.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.memory = mmap.mmap(
            map_.fd, page + 2 * self.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._read = memoryview(mine)[:8].cast("Q")
        self._bytes = memoryview(self.memory)
        self._written = self._bytes[:8].cast("Q")
        self.halves = self._bytes.cast("H")
        self._words = self._bytes.cast("I")
        self._position = self._read[0]  # up to here, records were given out

    def fileno(self) -> int:
        """Return a file descriptor that is readable, for select and epoll, while records wait."""
        return self.map.fd

    def offsets(self, limit: int = 1 << 30) -> list[int]:
        """Return where in `memory` the contents of the next records begin, in order.

        At most `limit`, up to the first record that is not finished. They count as read, and stay
        until `release`. This is the quickest way, for records that are unpacked in place.
        """
        found: list[int] = []
        words, mask, start = self._words, self.size - 1, mmap.PAGESIZE
        position, written = self._position, self._written[0]
        while position < written and limit:
            at = start + (position & mask)
            word = words[at >> 2]
            if word <= _LENGTH:
                # No flag is set, so this adds nothing; see above, order of memory.
                found.append(at + _HEADER_SIZE + (word & _BUSY))
                limit -= 1
            elif word & _BUSY:
                break
            position += ((word & _LENGTH) + _HEADER_SIZE + 7) & ~7
        self._position = position
        return found

    def read(self, limit: int = 1 << 30) -> list[memoryview]:
        """Return the contents of the next records; else as `offsets`."""
        content, words = self._bytes, self._words
        return [content[at : at + words[(at - _HEADER_SIZE) >> 2]] for at in self.offsets(limit)]

    @property
    def waiting(self) -> int:
        """How many bytes the program has written and nobody has released."""
        return self._written[0] - self._read[0]

    def release(self) -> None:
        """Give the room of all records that were read back to the program."""
        self._read[0] = self._position

    def close(self) -> None:
        """Unmap it, once what was read is let go of; the map stays open."""
        for view in (self._read, self._written, self._words, self.halves, self._bytes):
            view.release()
        with contextlib.suppress(BufferError):  # somebody has a record yet
            self.memory.close()
