"""Programs of both compilers, loaded and run on packets."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from lvskit_datapath_xdp.loader import BpfError, BpfObject, Map, Program

PACKET = bytes(range(64))
ABORTED, DROP, PASS, TX = range(4)
Read = Callable[[str], BpfObject]


def test_constants_are_the_programs_to_read(load: Read) -> None:
    obj = load("maps")
    obj.rodata["STEP"] = 5
    obj.rodata["VERDICT"] = DROP
    with obj.load() as loaded:
        assert loaded.programs["xdp_count"].test_run(PACKET, repeat=3).verdict == DROP
        assert struct.unpack_from("<QQ", loaded.maps["slots"].mmap()) == (4 * 15, 15)
        step = loaded.variable("STEP")
        assert step.readonly
        assert bytes(step) == b"\5\0\0\0"
        with pytest.raises(BpfError) as caught:
            loaded.maps[".rodata"].update(0, bytes(12))
        assert caught.value.errno == errno.EPERM
        with pytest.raises(BpfError, match="frozen ones only without writing"):
            loaded.maps[".rodata"].mmap()


def test_variables_are_shared_with_the_program(load: Read) -> None:
    obj = load("maps")
    obj.data["runs"] = 100
    with obj.load() as loaded:
        runs = loaded.variable("runs").cast("Q")
        assert runs[0] == 100
        loaded.programs["xdp_count"].test_run(PACKET, repeat=2)
        assert runs[0] == 102
        assert list(loaded.variable("last").cast("Q")) == [0, 0, 204]
        runs[0] = 7
        loaded.programs["xdp_count"].test_run(PACKET)
        assert list(loaded.variable("last").cast("Q")) == [0, 0, 16]
        assert loaded.variable("private_runs").cast("I")[0] == 3
        assert loaded.maps["counters"].lookup_int(0) == 3
        with pytest.raises(KeyError):
            loaded.variable("none")


def test_a_callback_is_called(load: Read) -> None:
    with load("maps").load(only=["xdp_loop", "xdp_tail"]) as loaded:
        assert loaded.programs["xdp_loop"].test_run(PACKET).verdict == DROP
        assert list(loaded.variable("last").cast("Q")) == [0, 10, 0]
        assert loaded.variable("xdp_loop.loops").cast("Q")[0] == 1


def test_a_tail_call_goes_where_the_source_says(load: Read) -> None:
    with load("maps").load() as loaded:
        program = loaded.programs["xdp_into_tail"]
        assert program.test_run(PACKET).verdict == TX
        loaded.maps["tails"].update(1, loaded.programs["xdp_loop"])
        assert program.test_run(PACKET).verdict == DROP
        loaded.maps["tails"].delete(1)
        assert program.test_run(PACKET).verdict == ABORTED


def test_a_packet_comes_back_as_the_program_left_it(load: Read) -> None:
    with load("maps").load() as loaded:
        done = loaded.programs["xdp_grow"].test_run(PACKET)
        assert (done.verdict, done.packet) == (TX, b"\xee" * 4 + PACKET)
        assert done.duration_ns >= 0
        same = loaded.programs["xdp_tail"].test_run(PACKET)
        assert (same.verdict, same.packet) == (TX, PACKET)


def test_a_context_is_given(load: Read) -> None:
    with load("maps").load() as loaded:
        context = struct.pack("<6I", 0, len(PACKET), 0, 1, 0, 0)  # interface 1, the loopback
        done = loaded.programs["xdp_remember"].test_run(PACKET, context=context)
        assert done.verdict == PASS
        assert len(done.context) == len(context)
        assert loaded.maps["recent"].lookup(0) == struct.pack("<QQ", 0, 1)
        assert loaded.maps["table"].lookup_int(0) == 0
        loaded.maps["routes"].update(struct.pack("<I4B", 0, 0, 0, 0, 0), 1)
        assert loaded.programs["xdp_remember"].test_run(PACKET).verdict == TX


def test_a_packet_without_a_header_is_refused(load: Read) -> None:
    with (
        load("maps").load() as loaded,
        pytest.raises(BpfError, match=r"cannot run xdp_tail: .*a packet has 14 bytes at least"),
    ):
        loaded.programs["xdp_tail"].test_run(b"short")


def test_the_kernel_knows_what_was_loaded(load: Read) -> None:
    with load("maps").load() as loaded:
        info = loaded.programs["xdp_choose"].info()
        assert info.name == "xdp_choose"
        assert info.map_ids == (loaded.maps["rings"].id,)
        assert len(info.tag) == 8
        # A second load has other maps, and the same tag.
        with load("maps").load() as other:
            again = other.programs["xdp_choose"].info()
        assert (again.tag, again.id == info.id) == (info.tag, False)


def test_the_verifiers_last_lines_are_told(load: Read) -> None:
    with pytest.raises(BpfError) as caught:
        load("refused").load()
    assert caught.value.errno == errno.EACCES
    text = str(caught.value)
    assert text.startswith("cannot load the program xdp_blind: Permission denied (EACCES); the")
    assert "invalid access to packet" in text
    assert "return *(u8 *)(long)ctx->data; @ refused.c:" in text  # the source, as BTF has it
    assert "invalid access to packet" in caught.value.log


def test_a_long_log_is_kept_to_its_end(load: Read) -> None:
    with pytest.raises(BpfError) as caught:
        load("refused").load(only=["xdp_long"])
    assert len(caught.value.log) > 1 << 16
    assert "invalid access to packet" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize("compiler", ["clang", "zig"])
def test_without_lines_all_but_callbacks_works(bpf: None, compiler: str) -> None:
    path = Path(__file__).parent / "objects" / f"maps.{compiler}.o"
    obj = BpfObject(path.read_bytes().replace(b"\0.BTF.ext\0", b"\0.XTF.ext\0"))
    with obj.load(only=["xdp_tail", "xdp_count"]) as loaded:
        assert loaded.programs["xdp_count"].test_run(PACKET).verdict == PASS
    with pytest.raises(BpfError, match="missing btf func_info"):
        obj.load(only=["xdp_tail", "xdp_loop"])


def test_programs_are_chosen_by_name(load: Read) -> None:
    obj = load("maps")
    with obj.load(only=["xdp_tail"]) as loaded:
        assert list(loaded.programs) == ["xdp_tail"]
    with pytest.raises(BpfError, match=r"has no program xdp_none; it has .*xdp_tail"):
        obj.load(only=["xdp_none"])
    # The map of programs names one in its first values.
    with pytest.raises(BpfError, match="the map tails is to hold 'xdp_tail', which is not loaded"):
        obj.load(only=["xdp_count"])


def test_pinned_maps_are_taken_over(load: Read, bpffs: Path) -> None:
    names = ("slots", "rings", ".bss", ".data")
    with load("maps").load() as loaded:
        loaded.programs["xdp_count"].test_run(PACKET, repeat=3)
        for name in names:
            loaded.maps[name].pin(bpffs / name.lstrip("."))
        loaded.maps["rings"].delete(1)
    pins = {name: Map.open(bpffs / name.lstrip(".")) for name in names}
    with load("maps").load(pins=pins) as again:
        again.programs["xdp_count"].test_run(PACKET)
        assert again.variable("private_runs").cast("I")[0] == 4
        assert again.variable("runs").cast("Q")[0] == 9
        assert struct.unpack_from("<QQ", again.maps["slots"].mmap())[1] == 4
        assert again.maps["counters"].lookup_int(0) == 1  # a new one
        assert again.maps["rings"].lookup(1) is None  # what is taken over is left as it is


def test_a_map_of_another_shape_is_not_taken_over(load: Read, bpffs: Path) -> None:
    with load("maps").load() as loaded:
        loaded.maps["slots"].pin(bpffs / "slots")
    obj = load("maps")
    obj.maps["slots"].max_entries = 101
    old = Map.open(bpffs / "slots")
    with pytest.raises(BpfError, match="given as slots has max_entries 100, not 101"):
        obj.load(pins={"slots": old})
    assert old.fd == -1
    with pytest.raises(BpfError, match=r"has no map nought; it has .*slots"):
        obj.load(pins={"nought": Map.open(bpffs / "slots")})


def test_a_pinned_program_is_opened(load: Read, bpffs: Path) -> None:
    with load("maps").load() as loaded:
        loaded.programs["xdp_tail"].pin(bpffs / "tail")
    with Program.open(bpffs / "tail") as program:
        assert program.name == "xdp_tail"
        assert program.test_run(PACKET).verdict == TX
