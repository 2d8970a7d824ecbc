"""Objects as both compilers write them, read and linked without the kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lvskit_datapath_xdp.loader import BpfError, BpfObject, MapFlags, MapType
from lvskit_datapath_xdp.loader import btf as types
from lvskit_datapath_xdp.loader.elf import Symbol
from lvskit_datapath_xdp.loader.link import Linker

OBJECTS = Path(__file__).parent / "objects"
BOTH = [(OBJECTS / f"maps.{compiler}.o").read_bytes() for compiler in ("clang", "zig")]
Read = Callable[[str], BpfObject]


def test_programs_and_licence(objects: Read) -> None:
    obj = objects("maps")
    assert sorted(obj.programs) == [
        "xdp_choose",
        "xdp_count",
        "xdp_grow",
        "xdp_into_tail",
        "xdp_loop",
        "xdp_remember",
        "xdp_tail",
    ]
    assert obj.license == "GPL"


def test_maps_have_the_shapes_of_the_source(objects: Read) -> None:
    maps = objects("maps").maps
    shapes = {
        name: (spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags)
        for name, spec in maps.items()
    }
    assert shapes == {
        "slots": (MapType.ARRAY, 4, 24, 100, MapFlags.MMAPABLE),
        "counters": (MapType.PERCPU_ARRAY, 4, 8, 4, 0),
        "table": (MapType.HASH, 4, 8, 64, 0),
        "recent": (MapType.LRU_HASH, 8, 16, 64, 0),
        "routes": (MapType.LPM_TRIE, 8, 4, 16, MapFlags.NO_PREALLOC),
        "first": (MapType.ARRAY, 4, 4, 8, 0),
        "rings": (MapType.ARRAY_OF_MAPS, 4, 4, 4, 0),
        "tails": (MapType.PROG_ARRAY, 4, 4, 2, 0),
    }
    inner = maps["rings"].inner
    assert inner is not None
    assert (inner.type, inner.key_size, inner.value_size, inner.max_entries) == (2, 4, 4, 8)
    assert maps["tails"].inner is None


def test_variables_begin_as_the_source_says(objects: Read) -> None:
    obj = objects("maps")
    assert obj.rodata["STEP"] == struct.pack("<I", 1)
    assert obj.rodata["ADDRESS"] == bytes([10, 0, 0, 1])
    assert obj.data["runs"] == struct.pack("<Q", 5)
    assert obj.bss["last"] == bytes(24)
    assert set(obj.bss) == {"last", "private_runs", "xdp_loop.loops"}
    assert "STEP" in obj.rodata
    assert "STEP" not in obj.data


def test_variables_are_set_by_number_and_by_bytes(objects: Read) -> None:
    obj = objects("maps")
    obj.rodata["STEP"] = 0x01020304
    obj.rodata["ADDRESS"] = bytes([192, 168, 0, 1])
    assert bytes(obj.rodata.content[:8]) == bytes([4, 3, 2, 1, 192, 168, 0, 1])
    with pytest.raises(ValueError, match="ADDRESS has 4 bytes; 3 were given"):
        obj.rodata["ADDRESS"] = b"abc"
    with pytest.raises(KeyError):
        obj.rodata["NONE"] = 1
    with pytest.raises(OverflowError):
        obj.rodata["STEP"] = 1 << 32


def test_a_program_is_linked_with_what_it_calls_and_no_more(objects: Read) -> None:
    obj = objects("maps")
    seen = []

    def refer(symbol: Symbol, offset: int) -> tuple[int, int | None]:
        seen.append((obj.elf.sections[symbol.section].name, offset))
        return 77, None

    linker = Linker(obj.elf, refer)
    by_name = {function.name: function for function in linker.functions.values()}
    linked = linker.link(by_name["xdp_count"])
    assert [function.name for function in linked.starts] == ["xdp_count", "four_times", "twice"]
    assert len(linked.code) == sum(function.size for function in linked.starts)
    assert (".rodata", 4) in seen  # ADDRESS
    # Every call lands where a function begins.
    starts = set(linked.starts.values())
    for at in range(0, len(linked.code), 8):
        operation, registers, _, distance = struct.unpack_from("<BBhi", linked.code, at)
        if operation == 0x85 and registers >> 4 == 1:
            assert at + 8 * (distance + 1) in starts


def test_a_function_that_is_not_there_is_named(objects: Read, bpf: None) -> None:
    with pytest.raises(BpfError, match="xdp_outside needs 'measure', which the object does not"):
        objects("external").load()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pointers", ".rodata.* holds addresses, which is not supported"),
        ("pinning", "the map kept has 'pinning', which this loader does not know"),
    ],
)
def test_what_is_not_supported_is_said(objects: Read, name: str, said: str) -> None:
    with pytest.raises(BpfError, match=said):
        objects(name)


def test_the_kernel_takes_the_types(objects: Read, bpf: None) -> None:
    loaded = types.load(objects("maps").btf, "maps")
    assert loaded is not None
    loaded.close()


def test_the_kernels_types_have_sizes_and_sorted_variables(objects: Read) -> None:
    btf = objects("maps").btf
    for section, size in ((".rodata", 12), (".bss", 40), (".maps", 296)):
        (found,) = (kind for kind in btf.types if kind.name == section)
        assert found.number == size
        places = [variable.offset for variable in btf.variables(section)]
        assert places == sorted(set(places))


def test_what_is_no_bpf_object_is_refused() -> None:
    with pytest.raises(BpfError, match="text is not a little-endian 64-bit BPF object file"):
        BpfObject(b"#!/bin/sh\n" * 20, "text")
    other = bytearray(BOTH[0])
    struct.pack_into("<H", other, 18, 62)  # EM_X86_64
    with pytest.raises(BpfError, match="BPF object file"):
        BpfObject(bytes(other))
    with pytest.raises(BpfError, match="object is damaged"):
        BpfObject(b"\x7fELF")


def test_an_object_without_types_is_refused() -> None:
    with pytest.raises(BpfError, match="no BTF: compile with -g"):
        BpfObject(BOTH[0].replace(b"\0.BTF\0", b"\0.XTF\0"))


@pytest.mark.parametrize("data", BOTH, ids=["clang", "zig"])
def test_half_an_object_is_refused(data: bytes) -> None:
    for length in range(0, len(data), 97):
        with pytest.raises(BpfError):
            BpfObject(data[:length])


@settings(max_examples=300)
@given(st.integers(0, 1), st.integers(0, 1 << 16), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read(which: int, at: int, value: int) -> None:
    changed = bytearray(BOTH[which])
    changed[at % len(changed)] = value
    try:
        BpfObject(bytes(changed))
    except BpfError:
        pass
