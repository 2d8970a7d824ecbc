"""The maps that an object defines in its section `.maps`, in libbpf's way."""

from __future__ import annotations

from typing import Final

from lvskit_datapath_xdp.loader.btf import Btf, Kind, Member, Type
from lvskit_datapath_xdp.loader.mapspec import MapSpec
from lvskit_datapath_xdp.loader.syscall import BpfError

SECTION: Final = ".maps"
_NUMBERS: Final = {
    "type": "type",
    "key_size": "key_size",
    "value_size": "value_size",
    "max_entries": "max_entries",
    "map_flags": "flags",
}


def read_maps(btf: Btf) -> dict[int, MapSpec]:
    """Return the maps by their offset in the section."""
    return {
        variable.offset: _spec(btf, variable.name, btf.real(variable.type))
        for variable in btf.variables(SECTION)
    }


def values_offset(btf: Btf, name: str) -> int:
    """Return where, from the beginning of the map `name`, its initial `values` are."""
    for variable in btf.variables(SECTION):
        if variable.name == name:
            for member in btf.members(btf.real(variable.type)):
                if member.name == "values":
                    return member.offset
    raise BpfError(0, f"the map {name} has no member `values`")


def _spec(btf: Btf, name: str, found: Type) -> MapSpec:
    """Read one definition: __uint(member, number), __type(member, type), __array(values, …)."""
    spec = MapSpec(name, 0, 0, 0, 0)
    for member in btf.members(found):
        if member.name in _NUMBERS:
            setattr(spec, _NUMBERS[member.name], _number(btf, name, member))
        elif member.name == "key":
            spec.key_type = _pointed(btf, name, member)
            spec.key_size = btf.size(spec.key_type)
        elif member.name == "value":
            spec.value_type = _pointed(btf, name, member)
            spec.value_size = btf.size(spec.value_type)
        elif member.name == "values":
            element = btf.real(btf.real(member.type).tail[0][0])
            inner = btf.real(element.number)
            spec.value_size = 4  # the kernel keeps a file descriptor's worth
            if inner.kind is Kind.STRUCT:
                spec.inner = _spec(btf, f"{name}.inner", inner)
        else:
            raise BpfError(
                0, f"the map {name} has {member.name!r}, which this loader does not know"
            )
    return spec


def _number(btf: Btf, name: str, member: Member) -> int:
    """Return the N of `int (*member)[N]`."""
    array = btf.real(_pointed(btf, name, member))
    if array.kind is not Kind.ARRAY:
        raise BpfError(0, f"the map {name}: {member.name} is not given as __uint does")
    return array.tail[0][2]


def _pointed(btf: Btf, name: str, member: Member) -> int:
    """Return the number of the type that a member points to."""
    pointer = btf.real(member.type)
    if pointer.kind is not Kind.PTR:
        raise BpfError(0, f"the map {name}: {member.name} is not given as __uint or __type do")
    return pointer.number
