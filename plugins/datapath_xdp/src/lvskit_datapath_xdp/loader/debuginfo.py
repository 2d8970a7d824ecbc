"""What `.BTF.ext` says of instructions: their functions' types, and lines of the source.

The kernel needs the former for callbacks; the latter make the verifier quote the source.
"""

from __future__ import annotations

import struct
from typing import Final

from lvskit_datapath_xdp.loader.btf import Btf
from lvskit_datapath_xdp.loader.elf import Elf
from lvskit_datapath_xdp.loader.link import INSTRUCTION, Linked
from lvskit_datapath_xdp.loader.program import Debug
from lvskit_datapath_xdp.loader.syscall import Handle

_HEADER: Final = struct.Struct("<HBBIIIII")
_SECTION: Final = struct.Struct("<II")
_MAGIC: Final = 0xEB9F
FUNCTION: Final = struct.Struct("<II")  # struct bpf_func_info: instruction, type
LINE: Final = struct.Struct("<IIII")  # struct bpf_line_info: instruction, file, line, column

Records = dict[str, list[tuple[int, ...]]]
"""By name of the section; the offset of an instruction, in bytes, comes first."""


class DebugInfo:
    """The records of an object; without `.BTF.ext` there are none. Damage shows as with `Elf`."""

    def __init__(self, elf: Elf, btf: Btf) -> None:
        self._elf = elf
        self._functions: Records = {}
        self._lines: Records = {}
        section = elf.section(".BTF.ext")
        if section is None:
            return
        magic, _, _, size, functions, _, lines, length = _HEADER.unpack_from(section.data)
        if magic != _MAGIC:
            raise ValueError(f"its .BTF.ext begins with {magic:#x}")
        middle, end = size + lines, size + lines + length
        _read(section.data[size + functions : middle], FUNCTION, btf, self._functions)
        _read(section.data[middle:end], LINE, btf, self._lines)

    def of(self, linked: Linked, btf: Handle | None) -> Debug | None:
        """Return what is known of a linked program, for the kernel; None if that is nothing."""
        functions = self._moved(self._functions, FUNCTION, linked)
        lines = self._moved(self._lines, LINE, linked)
        return Debug(btf.fd, functions, lines) if btf and functions else None

    def _moved(self, records: Records, form: struct.Struct, linked: Linked) -> bytearray:
        """Return records in the order of the program's instructions, as the kernel wants them."""
        out = bytearray()
        for function, start in linked.starts.items():
            for offset, *rest in records.get(self._elf.sections[function.section].name, ()):
                if function.offset <= offset < function.offset + function.size:
                    out += form.pack((start + offset - function.offset) // INSTRUCTION, *rest)
        return out


def _read(data: bytes, form: struct.Struct, btf: Btf, records: Records) -> None:
    """Read records of one kind into `records`; what is longer than `form` is cut."""
    if not data:
        return
    (size,) = struct.unpack_from("<I", data)
    at = 4
    while at < len(data):
        name, count = _SECTION.unpack_from(data, at)
        at += _SECTION.size
        starts = range(at, at + size * count, size)
        records[btf.string(name)] = [form.unpack_from(data, start) for start in starts]
        at += size * count
