"""That Python's idea of the maps is the compiler's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from struct import Struct, calcsize

import pytest
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.clock import clock_shift, seen_origin, ticks_per_second
from lvskit_datapath_xdp.loader import BpfObject, MapFlags
from lvskit_datapath_xdp.loader.btf import Kind
from xdp_kernel import OBJECT, Kernel
from xdp_world import CLIENT4, ES, IN4, TCP4, ip4, populate, raw, tcp

STRUCTS = {
    "service_key": (layout.SERVICE_KEY, layout.SERVICE_KEY.size),
    "service": (layout.SERVICE, layout.SERVICE.size),
    "server": (layout.SERVER, layout.SERVER_SIZE),
    "slot4": (layout.SLOT4, layout.SLOT4.size),
    "slot6": (layout.SLOT6, layout.SLOT6.size),
    "bucket4": (layout.SLOT4, layout.SLOT4.size * layout.SLOTS_PER_BUCKET),
    "bucket6": (layout.SLOT6, layout.SLOT6.size * layout.SLOTS_PER_BUCKET),
    "record": (layout.RECORD, layout.RECORD.size),
    "counters": (layout.COUNTERS, layout.COUNTERS.size),
}
ENUMS: dict[str, type[IntEnum]] = {
    "SERVICE_": layout.ServiceFlag,
    "RING_": layout.RingKind,
    "SERVER_": layout.ServerKind,
    "SLOT_": layout.SlotFlag,
    "RECORD_": layout.RecordKind,
    "REASON_": layout.Reason,
}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def obj() -> BpfObject:
    return BpfObject.read(OBJECT)


def fields(form: Struct) -> list[tuple[int, int]]:
    """Return where the fields of a format begin and end; text is one field."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([A-Za-z])", form.format):
        size = calcsize(f"<{count}{code}") if code in "sx" else calcsize(f"<{code}")
        for _ in range(1 if code in "sx" else int(count or 1)):
            if code != "x":
                found.append((at, at + size))
            at += size
    return found


def leaves(obj: BpfObject, number: int, at: int = 0) -> Iterator[int]:
    """Yield where the members of a type begin; of a union's, those of the most detailed one."""
    found = obj.btf.real(number)
    if found.kind is Kind.UNION:
        options = [list(leaves(obj, member.type, at)) for member in obj.btf.members(found)]
        yield from max(options, key=len)
    elif found.kind is Kind.STRUCT:
        for member in obj.btf.members(found):
            yield from leaves(obj, member.type, at + member.offset)
    elif found.kind is Kind.ARRAY:
        element, _, count = found.tail[0]
        for index in range(count):
            yield from leaves(obj, element, at + index * obj.btf.size(element))
    else:
        yield at


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_is_where_python_has_it(obj: BpfObject, name: str) -> None:
    form, size = STRUCTS[name]
    (number,) = (
        number
        for number, found in enumerate(obj.btf.types)
        if found.kind is Kind.STRUCT and found.name == name
    )
    assert obj.btf.size(number) == size
    starts = set(leaves(obj, number))
    for start, end in fields(form):
        assert start in starts, f"nothing begins at {start}"
        # What has no member of its own in Python is text, or nobody's.
        starts -= set(range(start, end))
    assert all(start >= fields(form)[-1][1] for start in starts)


def test_the_number_that_the_program_writes_is_not_in_the_servers_form(obj: BpfObject) -> None:
    (server,) = (found for found in obj.btf.types if found.name == "server" and found.tail)
    places = {member.name: member.offset for member in obj.btf.members(server)}
    assert places["identification"] == layout.SERVER_IDENTIFICATION >= layout.SERVER.size


def constants() -> dict[str, int]:
    """Return the constants of the header."""
    text = (Path(OBJECT).parent / "layout.h").read_text()
    found: dict[str, int] = {}
    for body in re.findall(r"enum(?: \w+)? \{(.*?)\}", text, re.DOTALL):
        value = -1
        for item in filter(None, (part.strip() for part in body.split(","))):
            name, _, given = item.partition("=")
            value = int(given, 0) if given else value + 1
            found[name.strip()] = value
    return found


@pytest.mark.parametrize("prefix", ENUMS)
def test_an_enumeration_is_complete(prefix: str) -> None:
    told = constants()
    expected = {f"{prefix}{member.name}": member.value for member in ENUMS[prefix]}
    assert expected.items() <= told.items()


def test_no_constant_is_without_its_python() -> None:
    named = {f"{prefix}{member.name}" for prefix, kind in ENUMS.items() for member in kind}
    named |= {f"SERVER_{flag.name}" for flag in layout.ServerFlag}
    named |= {f"RECORD_{flag.name}" for flag in layout.RecordFlag}
    told = constants()
    for name in told.keys() - named - {"REASONS", "KEY_FREE", "KEY_BUSY"}:
        assert told[name] == getattr(layout, name), name
    assert (told["KEY_FREE"], told["KEY_BUSY"]) == (0, layout.BUSY)
    assert told["REASONS"] == len(layout.Reason)
    for flag in (*layout.ServerFlag, *layout.RecordFlag):
        prefix = "SERVER_" if isinstance(flag, layout.ServerFlag) else "RECORD_"
        assert told[f"{prefix}{flag.name}"] == flag


def test_the_maps_hold_these(obj: BpfObject) -> None:
    sizes = {name: (spec.key_size, spec.value_size) for name, spec in obj.maps.items()}
    assert sizes == {
        "services": (layout.SERVICE_KEY.size, layout.SERVICE.size),
        "servers": (4, layout.SERVER_SIZE),
        "connections4": (4, layout.SLOT4.size * layout.SLOTS_PER_BUCKET),
        "connections6": (4, layout.SLOT6.size * layout.SLOTS_PER_BUCKET),
        "rings": (4, 4),
        "misses": (0, 0),
        "server_counters": (4, layout.COUNTERS.size),
        "service_counters": (4, layout.COUNTERS.size),
        "reasons": (4, 8 * len(layout.Reason)),
    }
    inner = obj.maps["rings"].inner
    assert inner is not None
    assert inner.flags == MapFlags.MMAPABLE
    assert (inner.key_size, inner.value_size, inner.max_entries) == (4, layout.RING_SIZE, 1)
    assert set(obj.rodata) >= {"hash_seed", "hash_multiplier", "mask4", "mask6", "clock_shift"}


def test_a_key_that_is_being_written_is_nobodys() -> None:
    """Not even one of the client and port that its bytes are."""
    *_, service, _, _, _, _ = layout.SLOT4.unpack(layout.BUSY.to_bytes(8, "little") + bytes(8))
    assert service == 0


def test_the_clock_is_the_kernels(kernel: Kernel) -> None:
    ticks = ticks_per_second()
    assert 0.17 < (1 << clock_shift()) / ticks < 0.36
    clock = kernel.loaded.programs["lvskit_clock"]
    started, first = time.monotonic(), clock.test_run(bytes(14)).verdict
    time.sleep(0.2)
    last, ended = clock.test_run(bytes(14)).verdict, time.monotonic()
    passed = (last - first) % (1 << 32) / ticks
    assert passed == pytest.approx(ended - started, abs=0.02)


@pytest.mark.parametrize("uptime", [0.0, 200.0, 299.9, 300.1, 1e6, 1e8])
def test_the_lower_half_of_the_clock_is_enough(uptime: float) -> None:
    rate = ticks_per_second()
    full = (1 << 32) - 300 * rate + round(uptime * rate)
    origin = seen_origin(full & 0xFFFFFFFF, uptime + 0.3)  # the two clocks differ a little
    assert origin + full / rate == pytest.approx(uptime + 0.3, abs=1e-6)


def test_a_packet_dates_its_connection(kernel: Kernel) -> None:
    populate(kernel)
    slot = kernel.connect(CLIENT4, 1024, TCP4, IN4, ES)
    ticks, now = (
        kernel.loaded.programs["lvskit_clock"].test_run(bytes(14)).verdict,
        time.monotonic(),
    )
    kernel.send(raw(ip4() / tcp("A")))
    unit = (1 << clock_shift()) / ticks_per_second()
    seen = seen_origin(ticks, now) + kernel.slot(4, slot)[-1] * unit
    assert now - unit - 0.05 < seen < time.monotonic() + 0.05
