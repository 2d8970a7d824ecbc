"""ELF relocatable files of the BPF machine: sections, symbols, relocations."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from lvskit_datapath_xdp.loader.syscall import BpfError

# System V ABI, chapter 4; the machine's number is of Linux include/uapi/linux/elf-em.h.
_ET_REL: Final = 1
_EM_BPF: Final = 247
_SHT_SYMTAB, _SHT_NOBITS, _SHT_REL = 2, 8, 9
SHF_EXECINSTR: Final = 4
STT_OBJECT, STT_FUNC, STT_SECTION = 1, 2, 3

_HEADER: Final = struct.Struct("<4sBBB9xHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name for a place: `value` bytes into the section of this number (0: defined elsewhere)."""

    name: str
    kind: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """The place, `offset` bytes into its section, that refers to `symbol`."""

    offset: int
    kind: int
    symbol: Symbol


@dataclass(slots=True)
class Section:
    """One section; `data` is empty for those that are zero, as .bss, whose `size` is not."""

    number: int
    name: str
    kind: int
    flags: int
    size: int
    data: bytes
    relocations: list[Relocation] = field(default_factory=list)

    @property
    def executable(self) -> bool:
        """Whether it holds instructions."""
        return bool(self.flags & SHF_EXECINSTR)


class Elf:
    """A parsed object. Damage shows as any of the errors that `BpfObject` catches.

    Attributes:
        sections: by number.
        symbols: by number, as the file has them.

    Raises:
        BpfError: the bytes are no little-endian 64-bit BPF object.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.sections: list[Section] = []
        self.symbols: list[Symbol] = []
        self._parse(data)

    def section(self, name: str) -> Section | None:
        """Return the section of this name, if there is one."""
        return next((section for section in self.sections if section.name == name), None)

    def symbols_of(self, section: Section) -> Iterator[Symbol]:
        """Yield the named places of a section: functions and variables."""
        for symbol in self.symbols:
            if symbol.section == section.number and symbol.kind in (STT_OBJECT, STT_FUNC):
                yield symbol

    def _parse(self, data: bytes) -> None:
        """Read everything; relocations refer to symbols, so they come last."""
        magic, bits, order, _, kind, machine, *_, at, _, _, _, _, entry, count, names = (
            _HEADER.unpack_from(data)
        )
        if magic != b"\x7fELF" or (bits, order, kind, machine) != (2, 1, _ET_REL, _EM_BPF):
            raise BpfError(0, f"{self.name} is not a little-endian 64-bit BPF object file")
        headers = [_SECTION.unpack_from(data, at + number * entry) for number in range(count)]
        strings = _content(data, headers[names])
        for number, header in enumerate(headers):
            name, kind, flags, _, _, size, *_ = header
            content = b"" if kind == _SHT_NOBITS else _content(data, header)
            self.sections.append(
                Section(number, _string(strings, name), kind, flags, size, content)
            )
        for header, section in zip(headers, self.sections, strict=True):
            if section.kind == _SHT_SYMTAB:
                strings = self.sections[header[6]].data
                for name, info, _, where, value, size in _SYMBOL.iter_unpack(section.data):
                    self.symbols.append(
                        Symbol(_string(strings, name), info & 15, where, value, size)
                    )
        for header, section in zip(headers, self.sections, strict=True):
            if section.kind == _SHT_REL:
                self.sections[header[7]].relocations += [
                    Relocation(offset, info & 0xFFFFFFFF, self.symbols[info >> 32])
                    for offset, info in _RELOCATION.iter_unpack(section.data)
                ]


def _content(data: bytes, header: tuple[int, ...]) -> bytes:
    """Return the bytes of the section that `header` describes."""
    offset, size = header[4:6]
    if offset + size > len(data):
        raise ValueError(f"a section ends at {offset + size} of {len(data)} bytes")
    return data[offset : offset + size]


def _string(strings: bytes, offset: int) -> str:
    """Return the string that begins at `offset` of a string table."""
    return strings[offset : strings.index(b"\0", offset)].decode()
