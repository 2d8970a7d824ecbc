"""An object file, from reading it to its programs and maps in the kernel."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from lvskit_datapath_xdp.loader import btf as types
from lvskit_datapath_xdp.loader import definitions
from lvskit_datapath_xdp.loader.btf import Btf
from lvskit_datapath_xdp.loader.debuginfo import DebugInfo
from lvskit_datapath_xdp.loader.elf import Elf, Symbol
from lvskit_datapath_xdp.loader.link import Linker, functions
from lvskit_datapath_xdp.loader.maps import Map
from lvskit_datapath_xdp.loader.mapspec import MapFlags, MapSpec, MapType
from lvskit_datapath_xdp.loader.program import Program
from lvskit_datapath_xdp.loader.syscall import BpfError, Closing, Handle
from lvskit_datapath_xdp.loader.variables import Variables

_DATA: Final = (".rodata", ".data", ".bss")
_PROGRAMS: Final = ("xdp", "xdp.frags")


class BpfObject:
    """A compiled object, not yet in the kernel; what it defines may still be changed.

    Attributes:
        maps: by name; their sizes may be changed, e.g. `max_entries`.
        rodata, data, bss: variables; constants are set here, the others also after the load.
        license: what the object says of itself.

    Raises:
        BpfError: it is no such object, or holds what this loader does not know.
    """

    def __init__(self, data: bytes, name: str = "object") -> None:
        self.name = name
        try:
            self._parse(data)
        except (struct.error, ArithmeticError, LookupError, RecursionError, ValueError) as err:
            raise BpfError(0, f"{name} is damaged: {err}") from err

    def _parse(self, data: bytes) -> None:
        """Read all that there is to know before the load."""
        self.elf = Elf(data, self.name)
        self.btf = Btf(self.elf)
        self.debug = DebugInfo(self.elf, self.btf)
        self.definitions = definitions.read_maps(self.btf)
        self.maps = {spec.name: spec for spec in self.definitions.values()}
        self.sections = {
            section.name: Variables(section, self.btf)
            for section in self.elf.sections
            if section.name.startswith(_DATA) and section.size
        }
        for name in self.sections:
            section = self.elf.section(name)
            if section and section.relocations:
                raise BpfError(0, f"{self.name}: {name} holds addresses, which is not supported")
        empty = Variables(None, self.btf)
        self.rodata, self.data, self.bss = (self.sections.get(name, empty) for name in _DATA)
        terms = self.elf.section("license")
        self.license = terms.data.split(b"\0")[0].decode() if terms else ""
        self._programs = {
            function.name: (function, section.name == "xdp.frags")
            for section in self.elf.sections
            if section.name.split("/")[0] in _PROGRAMS
            for function in functions(self.elf, section)
        }

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read an object file."""
        return cls(Path(path).read_bytes(), Path(path).name)

    @property
    def programs(self) -> list[str]:
        """Names of the functions in sections `xdp`, `xdp/…` and `xdp.frags`."""
        return list(self._programs)

    def load(
        self, *, pins: Mapping[str, Map] | None = None, only: Iterable[str] | None = None
    ) -> Loaded:
        """Make the maps and load the programs.

        Args:
            pins: maps to use instead of new ones, by name, as `Map.open` gives them; sections of
                variables have names too, `.data` and `.bss`. What is returned owns them.
            only: names of the programs to load; all, unless told.

        Raises:
            BpfError: the kernel refused, or a map of `pins` has another shape than the object
                says; what was made is gone again, `pins` are closed.
        """
        names = self.programs if only is None else list(only)
        with ExitStack() as undo:
            maps = {name: undo.enter_context(map_) for name, map_ in (pins or {}).items()}
            btf = types.load(self.btf, self.name)
            with btf or ExitStack():
                new = self._make_maps(maps, btf, undo)
                programs = {
                    name: undo.enter_context(self._load_program(name, maps, btf)) for name in names
                }
            self._fill(new, maps, programs)
            undo.pop_all()
        return Loaded(self, maps, programs)

    def _make_maps(self, maps: dict[str, Map], btf: Handle | None, undo: ExitStack) -> set[str]:
        """Add to `maps` what is not there yet; return the names of those."""
        specs = {**self.maps, **{name: self._section_spec(name) for name in self.sections}}
        for name, map_ in maps.items():
            if name not in specs:
                raise BpfError(0, f"{self.name} has no map {name}; it has {', '.join(specs)}")
            _check_shape(map_, specs[name])
        new = specs.keys() - maps.keys()
        for name in new:
            maps[name] = undo.enter_context(Map.create(specs[name], btf))
            if name in self.sections:
                maps[name].update(0, bytes(self.sections[name].content))
                if name.startswith(".rodata"):
                    maps[name].freeze()
        return new

    def _section_spec(self, name: str) -> MapSpec:
        """Return the map, of one element, that a section of variables becomes."""
        size = len(self.sections[name].content)
        flags = MapFlags.MMAPABLE
        if name.startswith(".rodata"):
            flags |= MapFlags.RDONLY_PROG
        return MapSpec(name, MapType.ARRAY, 4, size, 1, flags)

    def _load_program(self, name: str, maps: dict[str, Map], btf: Handle | None) -> Program:
        """Link and load one program."""
        if name not in self._programs:
            raise BpfError(
                0, f"{self.name} has no program {name}; it has {', '.join(self.programs)}"
            )

        def refer(symbol: Symbol, offset: int) -> tuple[int, int | None]:
            section = self.elf.sections[symbol.section].name
            if section in self.sections:
                return maps[section].fd, offset
            if section == definitions.SECTION and offset in self.definitions:
                return maps[self.definitions[offset].name].fd, None
            raise BpfError(0, f"{name} refers to {symbol.name!r} of section {section!r}")

        function, frags = self._programs[name]
        linked = Linker(self.elf, refer).link(function)
        debug = self.debug.of(linked, btf)
        return Program.load(name, linked.code, self.license, frags=frags, debug=debug)

    def _fill(self, new: set[str], maps: dict[str, Map], programs: dict[str, Program]) -> None:
        """Write the initial `values` of maps of maps and of programs."""
        section = self.elf.section(definitions.SECTION)
        for relocation in section.relocations if section else ():
            start = max(at for at in self.definitions if at <= relocation.offset)
            name = self.definitions[start].name
            first = start + definitions.values_offset(self.btf, name)
            symbol = relocation.symbol
            value = {**maps, **programs}.get(symbol.name)
            if value is None:
                raise BpfError(0, f"the map {name} is to hold {symbol.name!r}, which is not loaded")
            if name in new:
                maps[name].update((relocation.offset - first) // 8, value)


class Loaded(Closing):
    """An object's maps and programs in the kernel; a context manager that closes them.

    Attributes:
        maps: by name, also those of variables (`.rodata`, `.data`, `.bss`).
        programs: by name.
    """

    def __init__(
        self, source: BpfObject, maps: dict[str, Map], programs: dict[str, Program]
    ) -> None:
        self.maps = maps
        self.programs = programs
        self._sections = source.sections
        self._memory: dict[str, memoryview] = {}

    def variable(self, name: str) -> memoryview:
        """Return the memory of a variable, bytes, as the program sees it; constants read-only."""
        for section, variables in self._sections.items():
            if name in variables:
                if section not in self._memory:
                    writable = not section.startswith(".rodata")
                    self._memory[section] = self.maps[section].mmap(writable=writable)
                return self._memory[section][variables.places[name]]
        raise KeyError(name)

    def close(self) -> None:
        """Let go of everything; what is pinned or attached by a link that is held, stays."""
        self._memory.clear()
        for handle in (*self.programs.values(), *self.maps.values()):
            handle.close()


def _check_shape(map_: Map, spec: MapSpec) -> None:
    """Raise BpfError if a map is not what `spec` says."""
    for what in ("type", "key_size", "value_size", "max_entries", "flags"):
        has, wanted = getattr(map_.spec, what), getattr(spec, what)
        if has != wanted:
            about = f"the map given as {spec.name} has {what} {int(has)}, not {int(wanted)}"
            raise BpfError(0, f"{about}: it is not used")
