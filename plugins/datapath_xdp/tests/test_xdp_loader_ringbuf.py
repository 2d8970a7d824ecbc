"""The reading end of a ring buffer: of the kernel's, and of one that a file stands in for."""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_datapath_xdp.loader import BpfError, BpfObject, Map, MapSpec, MapType, RingBuffer

PACKET = bytes(64)
BUSY, DISCARD = 1 << 31, 1 << 30
Read = Callable[[str], BpfObject]


class Writer:
    """The kernel's side, kept in a file: two positions, and each byte of the ring twice."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * size)
        self.memory = mmap.mmap(self.fd, 0)
        self.position = 0

    def put(self, content: bytes, flags: int = 0) -> int | None:
        """Write a record; return where its header is, or None where there is no room."""
        taken = (len(content) + 8 + 7) // 8 * 8
        (read,) = struct.unpack_from("<Q", self.memory, 0)
        if self.position + taken - read > self.size:
            return None
        where = self.position
        self.store(where, struct.pack("<II", len(content) | flags, 0) + content)
        self.position += taken
        struct.pack_into("<Q", self.memory, mmap.PAGESIZE, self.position)
        return where

    def store(self, position: int, data: bytes) -> None:
        """Write bytes at a position, in both halves."""
        for number, byte in enumerate(data):
            at = 2 * mmap.PAGESIZE + (position + number) % self.size
            self.memory[at] = self.memory[at + self.size] = byte

    def reader(self) -> RingBuffer:
        """Return a reader of it."""
        return RingBuffer(Map(self.fd, MapSpec("ring", MapType.RINGBUF, 0, 0, self.size)))

    def close(self) -> None:
        """Let go of the file."""
        self.memory.close()
        os.close(self.fd)


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans(), st.booleans()), max_size=80))
def test_records_come_once_in_order_and_whole(records: list[tuple[bytes, bool, bool]]) -> None:
    writer = Writer(mmap.PAGESIZE)
    ring = writer.reader()
    sent, got = [], []
    for content, discarded, read_now in records:
        if writer.put(content, DISCARD if discarded else 0) is not None and not discarded:
            sent.append(content)
        if read_now:
            got += [bytes(record) for record in ring.read()]
            ring.release()
            assert ring.waiting == 0
    got += [bytes(record) for record in ring.read()]
    assert got == sent
    ring.close()
    writer.close()


def test_a_record_that_is_not_finished_holds_back_those_behind_it() -> None:
    writer = Writer(mmap.PAGESIZE)
    ring = writer.reader()
    writer.put(b"first")
    unfinished = writer.put(b"second", BUSY)
    writer.put(b"third")
    assert unfinished is not None
    assert [bytes(record) for record in ring.read()] == [b"first"]
    assert ring.read() == []
    ring.release()
    writer.store(unfinished, struct.pack("<I", 6))
    assert [bytes(record) for record in ring.read()] == [b"second", b"third"]
    writer.close()


def test_a_limit_leaves_the_rest() -> None:
    writer = Writer(mmap.PAGESIZE)
    ring = writer.reader()
    for number in range(5):
        writer.put(bytes([number]) * 4)
    places = ring.offsets(2)
    assert [ring.memory[place] for place in places] == [0, 1]
    ring.release()
    assert [bytes(record)[0] for record in ring.read(2)] == [2, 3]
    assert [bytes(record)[0] for record in ring.read()] == [4]
    writer.close()


def test_only_a_ring_buffer_can_be_read() -> None:
    with pytest.raises(BpfError, match="the map table is no ring buffer"):
        RingBuffer(Map(-1, MapSpec("table", MapType.HASH, 4, 4, 1)))


def test_the_kernels_records_through_many_rounds(load: Read) -> None:
    with load("records").load() as loaded:
        ring = RingBuffer(loaded.maps["records"])
        program = loaded.programs["xdp_report"]
        expected = iter(number for number in range(10_000) if number % 8 != 7)
        for _ in range(40):
            program.test_run(PACKET, repeat=100)
            for record in ring.read():
                number = next(expected)
                assert struct.unpack_from("<Q", record) == (number,)
                assert len(record) == (24 if number % 3 else 12)
            ring.release()
        assert next(expected) == 4_000
        assert loaded.variable("sequence").cast("Q")[0] == 4_000
        assert loaded.variable("lost").cast("Q")[0] == 0


def test_what_is_not_released_is_not_written_over(load: Read) -> None:
    with load("records").load() as loaded:
        ring = RingBuffer(loaded.maps["records"])
        loaded.programs["xdp_report"].test_run(PACKET, repeat=1000)
        lost = loaded.variable("lost").cast("Q")
        assert lost[0] > 800
        first = [struct.unpack_from("<Q", ring.memory, place)[0] for place in ring.offsets()]
        assert first == [number for number in range(first[-1] + 1) if number % 8 != 7]
        already = lost[0]
        ring.release()
        loaded.programs["xdp_report"].test_run(PACKET, repeat=10)
        assert lost[0] == already
        assert struct.unpack_from("<Q", ring.read()[0])[0] in (1000, 1001)


def test_its_descriptor_says_when_to_read(load: Read) -> None:
    with load("records").load() as loaded, select.epoll() as poll:
        ring = RingBuffer(loaded.maps["records"])
        poll.register(ring, select.EPOLLIN)
        assert poll.poll(0) == []
        loaded.programs["xdp_report"].test_run(PACKET)
        assert poll.poll(5) == [(ring.fileno(), select.EPOLLIN)]
        ring.read()
        ring.release()
        assert poll.poll(0) == []


def test_records_outlive_the_reader_and_the_map(load: Read) -> None:
    with load("records").load() as loaded:
        ring = RingBuffer(loaded.maps["records"])
        loaded.programs["xdp_report"].test_run(PACKET, repeat=2)
        _, record = ring.read()
        ring.close()
    assert struct.unpack_from("<Q", record) == (1,)


def test_it_is_found_again_where_the_last_reader_stopped(load: Read, bpffs: Path) -> None:
    with load("records").load() as loaded:
        loaded.maps["records"].pin(bpffs / "records")
        first = RingBuffer(loaded.maps["records"])
        loaded.programs["xdp_report"].test_run(PACKET, repeat=6)
        first.read(4)
        first.release()
        with Map.open(bpffs / "records") as again:
            left = [struct.unpack_from("<Q", record)[0] for record in RingBuffer(again).read()]
        assert left == [4, 5]
