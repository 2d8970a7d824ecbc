"""From sections and relocations to one stretch of instructions for each program."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lvskit_datapath_xdp.loader.elf import STT_FUNC, Elf, Relocation, Section, Symbol
from lvskit_datapath_xdp.loader.syscall import BpfError

INSTRUCTION: Final = 8  # bytes
# Linux include/uapi/linux/bpf.h
_CALL: Final = 0x85  # BPF_JMP | BPF_CALL
_LOAD_64: Final = 0x18  # BPF_LD | BPF_DW | BPF_IMM, of two instructions
_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE = 1, 2
_PSEUDO_CALL, _PSEUDO_FUNC = 1, 4
_CODE: Final = struct.Struct("<BBhi")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the object; `offset` and `size` in bytes, within the section's."""

    name: str
    section: int
    offset: int
    size: int


@dataclass(slots=True)
class Linked:
    """Instructions of a program and of all that it calls, and where each function begins."""

    code: bytearray = field(default_factory=bytearray)
    starts: dict[Function, int] = field(default_factory=dict)


MapReference = Callable[[Symbol, int], tuple[int, int | None]]
"""Given a symbol in a section of data and an offset there: the map's file descriptor, and for
variables the offset in its value."""


class Linker:
    """Links the functions of one object."""

    def __init__(self, elf: Elf, refer: MapReference) -> None:
        self._elf = elf
        self._refer = refer
        self.functions = {
            (function.section, function.offset): function
            for section in elf.sections
            if section.executable
            for function in functions(elf, section)
        }
        self._relocations = {
            (section.number, relocation.offset): relocation
            for section in elf.sections
            if section.executable
            for relocation in section.relocations
        }

    def link(self, main: Function) -> Linked:
        """Return a program: `main`, then what it calls, each function once."""
        linked = Linked()
        waiting = [main]
        # Where a call is, in bytes, and the function that it calls.
        calls: list[tuple[int, Function]] = []
        while waiting:
            function = waiting.pop(0)
            if function in linked.starts:
                continue
            linked.starts[function] = len(linked.code)
            found = self._append(function, linked.code)
            calls += found
            waiting += [called for _, called in found]
        for at, called in calls:
            distance = (linked.starts[called] - at) // INSTRUCTION - 1
            struct.pack_into("<i", linked.code, at + 4, distance)
        return linked

    def _append(self, function: Function, code: bytearray) -> list[tuple[int, Function]]:
        """Append a function's instructions to `code`; return its calls, yet to be resolved."""
        base = len(code)
        data = self._elf.sections[function.section].data
        code += data[function.offset : function.offset + function.size]
        calls = []
        at = base
        while at < len(code):
            operation, registers, _, value = _CODE.unpack_from(code, at)
            source = function.offset + at - base
            relocation = self._relocations.get((function.section, source))
            if operation == _CALL and registers >> 4 == _PSEUDO_CALL:
                where = source // INSTRUCTION + value + 1  # within its own section
                section = function.section
                if relocation:
                    section = relocation.symbol.section
                    where = relocation.symbol.value // INSTRUCTION + value + 1
                calls.append((at, self._function(section, where, relocation, function)))
            elif operation == _LOAD_64 and relocation:
                symbol = relocation.symbol
                if symbol.section and self._elf.sections[symbol.section].executable:
                    where = (symbol.value + value) // INSTRUCTION
                    called = self._function(symbol.section, where, relocation, function)
                    self._set_source(code, at, _PSEUDO_FUNC)
                    calls.append((at, called))
                else:
                    self._load_address(code, at, relocation, function, value)
            elif relocation:
                raise BpfError(
                    0, f"{function.name} refers to {relocation.symbol.name!r} in an unknown way"
                )
            at += 2 * INSTRUCTION if operation == _LOAD_64 else INSTRUCTION
        return calls

    def _load_address(
        self, code: bytearray, at: int, relocation: Relocation, function: Function, value: int
    ) -> None:
        """Make a load refer to a map, or to a variable in the map of its section."""
        symbol = relocation.symbol
        self._defined(symbol, function)
        fd, offset = self._refer(symbol, symbol.value + value)
        self._set_source(code, at, _PSEUDO_MAP_FD if offset is None else _PSEUDO_MAP_VALUE)
        struct.pack_into("<i", code, at + 4, fd)
        struct.pack_into("<i", code, at + INSTRUCTION + 4, offset or 0)

    @staticmethod
    def _set_source(code: bytearray, at: int, source: int) -> None:
        """Set an instruction's source register, by which the kernel tells what a load means."""
        code[at + 1] = code[at + 1] & 0x0F | source << 4

    def _function(
        self, section: int, where: int, relocation: Relocation | None, caller: Function
    ) -> Function:
        """Return the function that begins at an instruction of a section."""
        if relocation:
            self._defined(relocation.symbol, caller)
        try:
            return self.functions[section, where * INSTRUCTION]
        except KeyError:
            raise BpfError(
                0, f"{caller.name} calls instruction {where} of section {section}, no function's"
            ) from None

    @staticmethod
    def _defined(symbol: Symbol, user: Function) -> None:
        """Raise BpfError if a symbol is not of this object."""
        if symbol.section == 0:
            raise BpfError(
                0,
                f"{user.name} needs {symbol.name!r}, which the object does not define; memcpy and"
                " the like must be written as __builtin_memcpy of a constant size",
            )


def functions(elf: Elf, section: Section) -> list[Function]:
    """Return the functions of a section."""
    return [
        Function(symbol.name, section.number, symbol.value, symbol.size)
        for symbol in elf.symbols_of(section)
        if symbol.kind == STT_FUNC
    ]
