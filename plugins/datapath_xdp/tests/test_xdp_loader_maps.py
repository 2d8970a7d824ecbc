"""Maps of each kind, in the kernel."""

from __future__ import annotations

import errno
import gc
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from lvskit_datapath_xdp.loader import (
    BpfError,
    BpfObject,
    Map,
    MapFlags,
    MapSpec,
    MapType,
    Update,
)
from lvskit_datapath_xdp.loader.maps import possible_cpus

PACKET = bytes(64)
Read = Callable[[str], BpfObject]


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
def test_a_hash_keeps_what_it_is_given(bpf: None, kind: MapType) -> None:
    with Map.create(MapSpec("table", kind, 4, 8, 100)) as table:
        assert table.lookup(7) is None
        table.update(7, 700)
        table.update(b"\x08\0\0\0", struct.pack("<Q", 800))
        assert table.lookup(7) == struct.pack("<Q", 700)
        assert table.lookup_int(8) == 800
        assert table.delete(7)
        assert not table.delete(7)
        assert table.lookup_int(7) == 0


def test_an_update_can_insist(bpf: None) -> None:
    with Map.create(MapSpec("table", MapType.HASH, 4, 4, 2)) as table:
        with pytest.raises(BpfError) as caught:
            table.update(1, 1, Update.EXIST)
        assert caught.value.errno == errno.ENOENT
        table.update(1, 1, Update.NOEXIST)
        with pytest.raises(BpfError) as caught:
            table.update(1, 2, Update.NOEXIST)
        assert caught.value.errno == errno.EEXIST
        table.update(2, 2)
        with pytest.raises(BpfError, match=r"map table: .*\(E2BIG\); the map is full"):
            table.update(3, 3)


def test_sizes_are_checked_before_the_kernel_reads_beyond_them(bpf: None) -> None:
    with Map.create(MapSpec("table", MapType.HASH, 4, 8, 2)) as table:
        with pytest.raises(ValueError, match="a key of 3 and a value of 8 bytes were given"):
            table.update(b"abc", 1)
        with pytest.raises(ValueError, match="a key of 4 and a value of 2 bytes were given"):
            table.update(1, b"ab")
        with pytest.raises(ValueError, match="5 bytes of keys, 8 of values"):
            table.update_batch(bytes(5), bytes(8))
        with pytest.raises(OverflowError):
            table.update(1 << 32, 1)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (MapType.HASH, 0),
        (MapType.HASH, MapFlags.NO_PREALLOC),
        (MapType.LRU_HASH, 0),
    ],
)
def test_many_at_a_time(bpf: None, kind: MapType, flags: int) -> None:
    count = 5000
    keys = [struct.pack("<I", number) for number in range(count)]
    values = [struct.pack("<Q", number * number) for number in range(count)]
    with Map.create(MapSpec("table", kind, 4, 8, 20_000, flags)) as table:
        table.update_batch(b"".join(keys), b"".join(values))
        assert dict(table.items()) == dict(zip(keys, values, strict=True))
        # Also where a batch has less room than a bucket may have elements.
        joined = list(table.lookup_batch(1))
        assert sorted(b"".join(part for part, _ in joined)) == sorted(b"".join(keys))
        assert table.delete_batch(b"".join(keys[:1000])) == 1000
        assert len(list(table.items())) == count - 1000
        assert table.delete_batch(keys[1000] + keys[0] + keys[1001]) == 1
        assert table.delete_batch(b"".join(keys[1001:])) == count - 1001
        assert list(table.items()) == []


def test_an_array_is_read_in_batches(bpf: None) -> None:
    with Map.create(MapSpec("array", MapType.ARRAY, 4, 4, 10_000)) as array:
        indices = struct.pack("<10000I", *range(10_000))
        array.update_batch(indices, struct.pack("<10000I", *range(5, 10_005)))
        found = {int.from_bytes(key, "little"): value for key, value in array.items()}
        assert found == {number: struct.pack("<I", number + 5) for number in range(10_000)}
        with pytest.raises(BpfError, match="index beyond its end"):
            array.update(10_000, 1)


def test_counters_of_each_cpu_are_summed(bpf: None) -> None:
    with Map.create(MapSpec("counters", MapType.PERCPU_ARRAY, 4, 4, 3)) as counters:
        cpus = possible_cpus()
        counters.update(1, b"".join(struct.pack("<I4x", number) for number in range(1, cpus + 1)))
        assert counters.lookup_int(1) == cpus * (cpus + 1) // 2
        counters.update(2, 9)
        assert counters.lookup_int(2) == 9 * cpus
        assert len(counters.lookup(0) or b"") == 8 * cpus
        totals = [counters.lookup_int(key) for key, _ in counters.items()]
        assert totals == [0, cpus * (cpus + 1) // 2, 9 * cpus]


def test_prefixes_are_matched_by_length(bpf: None) -> None:
    with Map.create(MapSpec("routes", MapType.LPM_TRIE, 8, 4, 9, MapFlags.NO_PREALLOC)) as routes:
        routes.update(struct.pack("<I4B", 8, 10, 0, 0, 0), 1)
        routes.update(struct.pack("<I4B", 24, 10, 1, 2, 0), 2)
        assert routes.lookup_int(struct.pack("<I4B", 32, 10, 1, 2, 3)) == 2
        assert routes.lookup_int(struct.pack("<I4B", 32, 10, 9, 9, 9)) == 1
        assert routes.lookup(struct.pack("<I4B", 32, 11, 1, 2, 3)) is None


def test_mapped_memory_is_the_programs(load: Read) -> None:
    with load("maps").load() as loaded:
        slots = loaded.maps["slots"]
        memory = slots.mmap()
        assert (slots.stride, len(memory)) == (24, 24 * 100)
        struct.pack_into("<QQI", memory, 0, 0, 41, 0)
        loaded.programs["xdp_count"].test_run(PACKET)
        assert struct.unpack_from("<QQI", memory) == (4 * 42, 42, 10)
        struct.pack_into("<Q", memory, 24 * 99, 77)
        assert (slots.lookup(99) or b"")[:8] == struct.pack("<Q", 77)


def test_mapped_elements_begin_at_multiples_of_eight(bpf: None) -> None:
    spec = MapSpec("odd", MapType.ARRAY, 4, 5, 3, MapFlags.MMAPABLE)
    with Map.create(spec) as odd:
        odd.update(2, b"abcde")
        memory = odd.mmap()
        assert (odd.stride, len(memory)) == (8, 24)
        assert bytes(memory[16:21]) == b"abcde"


def test_mapped_memory_outlives_the_map(bpf: None) -> None:
    with Map.create(MapSpec("a", MapType.ARRAY, 4, 8, 1, MapFlags.MMAPABLE)) as array:
        part = array.mmap()[2:4]
    gc.collect()
    part[0] = 5
    assert bytes(part) == b"\5\0"


def test_what_cannot_be_mapped_is_said(bpf: None) -> None:
    with (
        Map.create(MapSpec("plain", MapType.ARRAY, 4, 8, 1)) as plain,
        pytest.raises(BpfError, match=r"cannot map the map plain into memory.*BPF_F_MMAPABLE"),
    ):
        plain.mmap()


def test_a_map_of_maps_is_swapped_under_the_program(load: Read) -> None:
    obj = load("maps")
    with obj.load() as loaded:
        rings, program = loaded.maps["rings"], loaded.programs["xdp_choose"]
        loaded.maps["first"].update(1, 2)
        assert program.test_run(PACKET).verdict == 2  # as `values` in the source has it
        inner = obj.maps["rings"].inner
        assert inner is not None
        with Map.create(inner) as other:
            other.update(1, 3)
            rings.update(1, other)
            assert rings.lookup_int(1) == other.id
        assert program.test_run(PACKET).verdict == 3
        rings.delete(1)
        assert program.test_run(PACKET).verdict == 0


def test_sizes_are_set_before_the_load(load: Read) -> None:
    obj = load("maps")
    obj.maps["slots"].max_entries = 100_000
    with obj.load(only=["xdp_tail"]) as loaded:
        assert len(loaded.maps["slots"].mmap()) == 24 * 100_000


def test_a_ring_buffer_has_whole_pages(bpf: None) -> None:
    with Map.create(MapSpec("small", MapType.RINGBUF, 0, 0, 1)) as ring:
        assert ring.spec.max_entries >= 4096


def test_a_pinned_map_is_opened_as_it_was_made(bpf: None, bpffs: Path) -> None:
    spec = MapSpec("table", MapType.HASH, 4, 8, 100, MapFlags.NO_PREALLOC)
    with Map.create(spec) as table:
        table.update(1, 11)
        table.pin(bpffs / "table")
        number = table.id
    with Map.open(bpffs / "table") as again:
        assert again.spec == spec
        assert (again.id, again.lookup_int(1)) == (number, 11)
        with pytest.raises(BpfError, match="something is pinned there already"):
            again.pin(bpffs / "table")
    (bpffs / "table").unlink()
    with pytest.raises(BpfError) as caught:
        Map.open(bpffs / "table")
    assert caught.value.errno == errno.ENOENT


def test_pinning_elsewhere_says_where_to(bpf: None, tmp_path: Path) -> None:
    with (
        Map.create(MapSpec("table", MapType.HASH, 4, 8, 1)) as table,
        pytest.raises(BpfError, match="not on a BPF file system: mount -t bpf bpf /sys/fs/bpf"),
    ):
        table.pin(tmp_path / "table")


def test_a_kind_that_the_kernel_does_not_know(bpf: None) -> None:
    with pytest.raises(BpfError, match="does not know this kind of map"):
        Map.create(MapSpec("odd", 1000, 4, 4, 1))
