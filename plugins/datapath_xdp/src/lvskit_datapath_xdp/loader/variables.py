"""The variables of a program, before the load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lvskit_datapath_xdp.loader.btf import Btf
from lvskit_datapath_xdp.loader.elf import Section
from lvskit_datapath_xdp.loader.maps import packed

_LARGEST: Final = 1 << 26  # bytes; more is a damaged number


class Variables:
    """What the variables of one section begin as: read as bytes, set as bytes or an int.

    Attributes:
        content: the whole section.
    """

    def __init__(self, section: Section | None, btf: Btf) -> None:
        variables = btf.variables(section.name) if section else []
        self.places = {
            variable.name: slice(variable.offset, variable.offset + variable.size)
            for variable in variables
        }
        if section and section.size > _LARGEST:
            raise ValueError(f"section {section.name} has {section.size} bytes")
        self.content = bytearray(section.data.ljust(section.size, b"\0") if section else b"")

    def __getitem__(self, name: str) -> bytes:
        return bytes(self.content[self.places[name]])

    def __setitem__(self, name: str, value: bytes | int) -> None:
        place = self.places[name]
        size = place.stop - place.start
        data = packed(value, size)
        if len(data) != size:
            raise ValueError(f"the variable {name} has {size} bytes; {len(data)} were given")
        self.content[place] = data

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places
