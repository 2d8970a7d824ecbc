"""BTF, the types that the compiler wrote next to the program, and the kernel's copy of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from lvskit_datapath_xdp.loader.elf import Elf
from lvskit_datapath_xdp.loader.syscall import BpfError, Command, Handle, address, bpf

_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MAGIC: Final = 0xEB9F
_POINTER_SIZE: Final = 8


class Kind(IntEnum):
    """BTF_KIND_* of Linux include/uapi/linux/btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_ALIASES: Final = {
    Kind.TYPEDEF,
    Kind.VOLATILE,
    Kind.CONST,
    Kind.RESTRICT,
    Kind.TYPE_TAG,
    Kind.VAR,
}
_SIZED: Final = {Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FLOAT, Kind.ENUM64}

# What follows struct btf_type: bytes once, and bytes for each of `vlen`.
_TAILS: Final = {
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}


class Member(NamedTuple):
    """A member of a struct; `offset` in bytes."""

    name: str
    type: int
    offset: int


class Variable(NamedTuple):
    """A variable of a section of data; `offset` and `size` in bytes."""

    name: str
    type: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Type:
    """One type; `number` is a size or another type's number, as its kind has it."""

    kind: Kind
    name: str
    number: int
    tail: tuple[tuple[int, ...], ...]


class Btf:
    """The types of an object, numbered from 1 (0 is void). Damage shows as with `Elf`.

    Attributes:
        raw: what to give to the kernel: compilers leave the sizes of sections and the places of
            variables to the linker, of which there is none; they are filled in here.

    Raises:
        BpfError: the object has no BTF.
    """

    def __init__(self, elf: Elf) -> None:
        section = elf.section(".BTF")
        if section is None:
            raise BpfError(0, f"{elf.name} has no BTF: compile with -g, and keep .BTF")
        self.raw = bytearray(section.data)
        self.types = [Type(Kind.VOID, "", 0, ())]
        magic, _, _, header, types, size, self._strings, _ = _HEADER.unpack_from(self.raw)
        if magic != _MAGIC:
            raise ValueError(f"its BTF begins with {magic:#x}")
        self._strings += header
        at, end = header + types, header + types + size
        while at < end:
            at = self._read(at, elf)

    def _read(self, at: int, elf: Elf) -> int:
        """Read the type at this offset; return the offset of the next one."""
        name_at, info, number = _TYPE.unpack_from(self.raw, at)
        name, kind, vlen = self.string(name_at), Kind(info >> 24 & 31), info & 0xFFFF
        once, each = _TAILS.get(kind, (0, 0))
        tail = at + _TYPE.size
        if kind is Kind.DATASEC:
            number = self._place_variables(elf, name, at, vlen)
        size = once or each
        form = f"<{size // 4}I"
        content = self.raw[tail : tail + once + each * vlen]
        fields = tuple(struct.iter_unpack(form, content)) if content else ()
        self.types.append(Type(kind, name, number, fields))
        return tail + len(content)

    def _place_variables(self, elf: Elf, name: str, at: int, count: int) -> int:
        """Fill in a section's size and where its variables are, in that order; return the size."""
        section = elf.section(name)
        if section is None:
            raise BpfError(0, f"{elf.name} wants {name} of the kernel, which is not supported")
        places = {symbol.name: symbol.value for symbol in elf.symbols_of(section)}
        variables = []
        for entry in range(at + _TYPE.size, at + _TYPE.size + 12 * count, 12):
            type_, _, size = _TYPE.unpack_from(self.raw, entry)
            variables.append((places[self.types[type_].name], type_, size))
        for number, (offset, type_, size) in enumerate(sorted(variables)):
            _TYPE.pack_into(self.raw, at + _TYPE.size * (number + 1), type_, offset, size)
        struct.pack_into("<I", self.raw, at + 8, section.size)
        return section.size

    def string(self, offset: int) -> str:
        """Return a string of BTF's own table."""
        start = self._strings + offset
        return self.raw[start : self.raw.index(0, start)].decode()

    def real(self, number: int) -> Type:
        """Return a type without the names and qualifiers around it."""
        found = self.types[number]
        return self.real(found.number) if found.kind in _ALIASES else found

    def size(self, number: int) -> int:
        """Return how many bytes a type takes."""
        found = self.real(number)
        if found.kind is Kind.ARRAY:
            element, _, count = found.tail[0]
            return self.size(element) * count
        if found.kind is Kind.PTR:
            return _POINTER_SIZE
        if found.kind in _SIZED:
            return found.number
        raise BpfError(0, f"a {found.kind.name} has no size")

    def members(self, found: Type) -> list[Member]:
        """Return the members of a struct."""
        return [Member(self.string(name), type_, bits // 8) for name, type_, bits in found.tail]

    def variables(self, section: str) -> list[Variable]:
        """Return the variables of a section of data, or none, in the order of their places."""
        for found in self.types:
            if found.kind is Kind.DATASEC and found.name == section:
                return [
                    Variable(self.types[type_].name, type_, offset, size)
                    for type_, offset, size in found.tail
                ]
        return []


def load(btf: Btf, name: str) -> Handle | None:
    """Give BTF to the kernel; None if it refuses, as an older one does what it does not know.

    Without it there are no callbacks, no spin locks and no timers, and the verifier and tools have
    no lines of the source to show; everything else works.
    """
    attr = bytearray(struct.pack("<QQIIII", address(btf.raw), 0, len(btf.raw), 0, 0, 0))
    try:
        return Handle(bpf(Command.BTF_LOAD, attr, f"load the BTF of {name}"), f"BTF of {name}")
    except BpfError:
        return None
