#!/usr/bin/env python3
"""Build the BPF objects that are committed next to their sources, with a pinned compiler.

    python build.py             build all of them
    python build.py --check     build them elsewhere; fail where the committed bytes differ
    python build.py --clang clang-14
                                also build the tests' objects with that compiler, as *.clang.o

The compiler comes with the package `ziglang`, of exactly one version; its bytes are the same on
every machine. `tox run -e bpf` checks; `uv run --group bpf python` runs this to build.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

COMPILER = "0.17.1"
HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "src" / "lvskit_datapath_xdp" / "bpf"
BENCH = HERE.parents[1] / "bench" / "xdp"
TESTS = HERE / "tests" / "objects"

ZIG = [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding-none"]
# v3: what every kernel that the loader supports can run. BTF is made of what -g gives.
OPTIONS = ["-mcpu=v3", "-O2", "-g", "-std=gnu11", "-Wall", "-Werror", "-c"]

# What the loader has no use for: DWARF, and relocations of BTF, which are for linkers.
DROPPED = (".debug_", ".eh_frame", ".llvm_addrsig", ".comment")
# System V ABI, chapter 4.
SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS, SHT_REL = 2, 3, 8, 9
STT_OBJECT, STT_FUNC = 1, 2
STB_LOCAL = 0
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
RELOCATION = struct.Struct("<QII")


def main() -> int:
    """Build or check; return the exit status."""
    parser = argparse.ArgumentParser(description="build the BPF objects")
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    parser.add_argument("--clang", help="build the tests' objects with this compiler too")
    arguments = parser.parse_args()
    if version("ziglang") != COMPILER:
        sys.exit(f"ziglang {COMPILER} is needed, and this is {version('ziglang')}")
    different = []
    for source, target in targets():
        built = compiled(ZIG, source)
        if not arguments.check:
            target.write_bytes(built)
        elif not target.exists() or target.read_bytes() != built:
            different.append(target)
        print(f"{os.path.relpath(target, HERE)}: {len(built)} bytes")
        if arguments.clang and source.parent == TESTS:
            other = compiled([arguments.clang, "-target", "bpfel"], source)
            source.with_suffix(".clang.o").write_bytes(other)
    for target in different:
        path = os.path.relpath(target, HERE)
        print(f"{path} is not what its source gives; run {Path(__file__).name}")
    return 1 if different else 0


def targets() -> Iterator[tuple[Path, Path]]:
    """Yield each source and its object."""
    for source in sorted([*PROGRAMS.glob("*.bpf.c"), *BENCH.glob("*.bpf.c")]):
        yield source, source.with_suffix(".o")
    for source in sorted(TESTS.glob("*.c")):
        yield source, source.with_suffix(".zig.o")


def compiled(compiler: list[str], source: Path) -> bytes:
    """Return the object of a source, without what the loader does not need."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "object.o"
        # Nothing of where this is done may be in the object, and nothing of an earlier run.
        paths = [f"-ffile-prefix-map={source.parent}=.", "-fdebug-compilation-dir=."]
        caches = {f"ZIG_{which}_CACHE_DIR": scratch for which in ("LOCAL", "GLOBAL")}
        command = [*compiler, *OPTIONS, *paths, source.name, "-o", str(target)]
        if subprocess.call(command, cwd=source.parent, env=os.environ | caches):
            sys.exit(f"{source.name} does not compile; what the compiler said is above")
        return stripped(target.read_bytes())


@dataclass
class Section:
    """A section; its other fields as struct Elf64_Shdr has them, and their order in it."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry: int
    data: bytes


class Strings:
    """A string table in the making."""

    def __init__(self) -> None:
        self.data = b"\0"

    def add(self, text: str) -> int:
        """Return where a string is, which is added unless it is there."""
        entry = b"\0" + text.encode() + b"\0"
        if entry not in self.data and text:
            self.data += entry[1:]
        return self.data.index(entry) + 1 if text else 0


def stripped(data: bytes) -> bytes:
    """Return a relocatable file without its debugging sections and without needless symbols."""
    header = HEADER.unpack_from(data)
    sections = list(read_sections(data, header))
    numbers: dict[int, int] = {}
    for number, section in enumerate(sections):
        if is_kept(section):
            numbers[number] = len(numbers)
    kept = [sections[number] for number in numbers]
    strings = Strings()
    relocations = [section for section in kept if section.kind == SHT_REL]
    used = {symbol for part in relocations for _, _, symbol in RELOCATION.iter_unpack(part.data)}
    (table,) = (section for section in kept if section.kind == SHT_SYMTAB)
    texts, symbols = sections[table.link].data, b""
    order: dict[int, int] = {}
    local = 0
    for old, symbol in enumerate(SYMBOL.iter_unpack(table.data)):
        name, info, other, where, value, size = symbol
        named = info & 15 in (STT_OBJECT, STT_FUNC)  # the others are labels, and sections
        if old == 0 or old in used or (named and where in numbers):
            order[old] = len(order)
            local += info >> 4 == STB_LOCAL
            at, where = strings.add(string(texts, name)), numbers[where]
            symbols += SYMBOL.pack(at, info, other, where, value, size)
    table.data, table.info = symbols, local
    for section in relocations:
        entries = RELOCATION.iter_unpack(section.data)
        section.data = b"".join(RELOCATION.pack(at, how, order[old]) for at, how, old in entries)
        section.info = numbers[section.info]
    names = [strings.add(section.name) for section in kept]
    for section in kept:
        section.link = numbers[section.link]
        if section.kind == SHT_STRTAB:
            section.data = strings.data
    return written(header, kept, names, numbers[header[-1]])


def read_sections(data: bytes, header: tuple[int, ...]) -> Iterator[Section]:
    """Yield the sections of a file."""
    start, count, names = header[6], header[12], header[13]
    headers = list(SECTION.iter_unpack(data[start : start + count * SECTION.size]))
    texts = data[headers[names][4] :]
    for name, *rest in headers:
        kind, offset, size = rest[0], rest[3], rest[4]
        content = b"" if kind == SHT_NOBITS else data[offset : offset + size]
        yield Section(string(texts, name), *rest, content)


def written(header: tuple[int, ...], kept: list[Section], names: list[int], strings: int) -> bytes:
    """Return a file of these sections."""
    out = bytearray(HEADER.size)
    table = b""
    for section, name in zip(kept, names, strict=True):
        if section.kind:
            out += bytes(-len(out) % max(section.alignment, 1))
            section.offset = len(out)
            out += section.data
            section.size = section.size if section.kind == SHT_NOBITS else len(section.data)
        fields = dataclasses.astuple(section)[1:-1]
        table += SECTION.pack(name, *fields)
    out += bytes(-len(out) % 8)
    HEADER.pack_into(out, 0, *header[:6], len(out), *header[7:12], len(kept), strings)
    return bytes(out + table)


def is_kept(section: Section) -> bool:
    """Whether a section stays."""
    if section.kind == SHT_REL and section.name.startswith(".rel.BTF"):
        return False
    return not section.name.removeprefix(".rel").startswith(DROPPED)


def string(table: bytes, offset: int) -> str:
    """Return the string that begins at an offset of a string table."""
    return table[offset : table.index(b"\0", offset)].decode()


if __name__ == "__main__":
    sys.exit(main())
