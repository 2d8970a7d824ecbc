"""Maps: memory that the program in the kernel and this process share."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

from lvskit_datapath_xdp.loader.mapspec import PER_CPU, WITH_BTF, MapSpec, MapType
from lvskit_datapath_xdp.loader.syscall import (
    BpfError,
    Command,
    Handle,
    address,
    bpf,
    object_info,
    open_pinned,
    short,
    text,
)

_ELEMENT: Final = struct.Struct("<I4xQQQ")
_BATCH: Final = struct.Struct("<QQQQIIQQ")
_INFO: Final = struct.Struct("<IIIIII16s")
_CREATE: Final = struct.Struct("<7I16s5IQ")


class Update(IntEnum):
    """What `Map.update` may do to an element."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


def possible_cpus() -> int:
    """Return for how many CPUs a per-CPU map has values."""
    total = 0
    for part in Path("/sys/devices/system/cpu/possible").read_text().split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


class Map(Handle):
    """A map that exists.

    A key or value is bytes of exactly its size, or an int, which becomes little-endian bytes of
    that size, or a map or program, for maps of those.

    Attributes:
        spec: its shape.
        value_bytes: length of a value as this process sees it: for per-CPU maps that of all CPUs,
            each rounded up to 8 bytes.
    """

    def __init__(self, fd: int, spec: MapSpec) -> None:
        super().__init__(fd, spec.name)
        self.spec = spec
        self.value_bytes = spec.value_size
        if spec.type in PER_CPU:
            self.value_bytes = rounded(spec.value_size) * possible_cpus()

    @classmethod
    def create(cls, spec: MapSpec, btf: Handle | None = None) -> Self:
        """Make a map, with the types of its keys and values where the kernel takes those.

        Raises:
            BpfError: the kernel refused; `errno` says why.
        """
        entries = spec.max_entries
        if spec.type == MapType.RINGBUF:  # the kernel wants whole pages, of whichever size it has
            entries = max(entries, mmap.PAGESIZE)
        described = btf is not None and spec.value_type > 0 and spec.type in WITH_BTF
        types = (btf.fd, spec.key_type, spec.value_type) if btf and described else (0, 0, 0)
        doing = f"make the map {spec.name} of {entries} entries"
        unknown = "this kernel does not know this kind of map, or not these sizes or flags"
        with ExitStack() as used:
            inner = used.enter_context(Map.create(spec.inner)).fd if spec.inner else 0
            sizes = (spec.type, spec.key_size, spec.value_size, entries, spec.flags)
            attr = _CREATE.pack(*sizes, inner, 0, short(spec.name), 0, *types, 0, 0)
            try:
                fd = bpf(Command.MAP_CREATE, bytearray(attr), doing, {errno.EINVAL: unknown})
            except BpfError as err:
                if described and err.errno not in (errno.ENOMEM, errno.EPERM):
                    return cls.create(spec)
                raise
        return cls(fd, replace(spec, max_entries=entries))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the map that is pinned at `path`."""
        with Handle(open_pinned(path), os.fspath(path)) as opened:
            info = object_info(opened.fd, bytearray(_INFO.size))
            kind, _, key, value, entries, flags, name = _INFO.unpack(info)
            fd, opened.fd = opened.fd, -1
        return cls(fd, MapSpec(text(name), kind, key, value, entries, flags))

    @property
    def id(self) -> int:
        """The kernel's number of it."""
        return int(_INFO.unpack(object_info(self.fd, bytearray(_INFO.size)))[1])

    def lookup(self, key: bytes | int) -> bytes | None:
        """Return the value of a key; of all CPUs, one after another, for per-CPU maps."""
        value = bytearray(self.value_bytes)
        return bytes(value) if self._element(Command.MAP_LOOKUP, key, value) else None

    def lookup_int(self, key: bytes | int) -> int:
        """Return the value of a key as a number, summed over all CPUs; 0 if there is none."""
        value, size = self.lookup(key) or b"", self.spec.value_size
        step = rounded(size) if self.spec.type in PER_CPU else max(size, 1)
        starts = range(0, len(value), step)
        return sum(int.from_bytes(value[at : at + size], "little") for at in starts)

    def update(
        self, key: bytes | int, value: bytes | int | Handle, flags: Update = Update.ANY
    ) -> None:
        """Write an element; a per-CPU map takes the values of all CPUs, or an int for each."""
        fixed = bytearray(packed(value, self.spec.value_size))
        if self.spec.type in PER_CPU and not isinstance(value, bytes):
            fixed = bytearray(bytes(fixed).ljust(rounded(len(fixed)), b"\0") * possible_cpus())
        self._element(Command.MAP_UPDATE, key, fixed, flags)

    def delete(self, key: bytes | int) -> bool:
        """Delete an element; return whether there was one."""
        return self._element(Command.MAP_DELETE, key, bytearray())

    def _element(
        self, command: Command, key: bytes | int, value: bytearray, flags: int = 0
    ) -> bool:
        """Do something to one element; False if there is none of this key."""
        held = bytearray(packed(key, self.spec.key_size))
        expected = 0 if command is Command.MAP_DELETE else self.value_bytes
        if len(held) != self.spec.key_size or len(value) != expected:
            raise ValueError(
                f"{self.name}: a key of {len(held)} and a value of {len(value)} bytes were given;"
                f" they have {self.spec.key_size} and {expected}"
            )
        attr = bytearray(_ELEMENT.pack(self.fd, address(held), address(value), flags))
        doing = f"{command.name[4:].lower()} an element of the map {self.name}"
        try:
            bpf(command, attr, doing, {errno.E2BIG: "the map is full, or the index beyond its end"})
        except BpfError as err:
            if err.errno == errno.ENOENT and command is not Command.MAP_UPDATE:
                return False
            raise
        return True

    def lookup_batch(self, count: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """Yield all elements, about `count` at a time: their keys, and their values, joined.

        Elements that come or go meanwhile may be among them or not.
        """
        token = bytearray(max(self.spec.key_size, 8))
        started = False
        while True:
            keys = bytearray(count * self.spec.key_size)
            values = bytearray(count * self.value_bytes)
            before = bytes(token)
            attr = self._batch(count, keys, values, token, started)
            done = False
            try:
                bpf(Command.MAP_LOOKUP_BATCH, attr, f"read the map {self.name}")
            except BpfError as err:
                if err.errno == errno.ENOSPC:  # less room than one bucket has elements
                    count *= 2
                    token[:] = before
                    continue
                if err.errno != errno.ENOENT:
                    raise
                done = True
            got = _BATCH.unpack(attr)[4]
            if got:
                yield (
                    bytes(keys[: got * self.spec.key_size]),
                    bytes(values[: got * self.value_bytes]),
                )
            if done:
                return
            started = True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of all elements."""
        size, width = self.spec.key_size, self.value_bytes
        for keys, values in self.lookup_batch():
            for at in range(len(keys) // size):
                yield keys[at * size : (at + 1) * size], values[at * width : (at + 1) * width]

    def update_batch(self, keys: bytes, values: bytes, flags: Update = Update.ANY) -> None:
        """Write many elements, their keys joined and their values joined, in one call."""
        count = len(keys) // self.spec.key_size
        if len(keys) != count * self.spec.key_size or len(values) != count * self.value_bytes:
            raise ValueError(f"{self.name}: {len(keys)} bytes of keys, {len(values)} of values")
        held, written = bytearray(keys), bytearray(values)
        attr = self._batch(count, held, written, flags=flags)
        bpf(Command.MAP_UPDATE_BATCH, attr, f"write {count} elements of the map {self.name}")

    def delete_batch(self, keys: bytes) -> int:
        """Delete elements, up to the first that does not exist; return how many."""
        held = bytearray(keys)
        attr = self._batch(len(keys) // self.spec.key_size, held, bytearray())
        try:
            bpf(Command.MAP_DELETE_BATCH, attr, f"delete from the map {self.name}")
        except BpfError as err:
            if err.errno != errno.ENOENT:
                raise
        return int(_BATCH.unpack(attr)[4])

    def _batch(
        self,
        count: int,
        keys: bytearray,
        values: bytearray,
        token: bytearray | None = None,
        started: bool = False,
        flags: int = 0,
    ) -> bytearray:
        """Return what bpf(2) is given for many elements; the caller keeps the buffers alive."""
        out = address(token) if token else 0
        first = out if started else 0
        return bytearray(
            _BATCH.pack(first, out, address(keys), address(values), count, self.fd, flags, 0)
        )

    def freeze(self) -> None:
        """Forbid every further write from outside the program."""
        bpf(Command.MAP_FREEZE, bytearray(struct.pack("<I", self.fd)), f"freeze {self.name}")

    @property
    def stride(self) -> int:
        """Bytes from one element to the next in the memory that `mmap` gives."""
        return rounded(self.spec.value_size)

    def mmap(self, *, writable: bool = True) -> memoryview:
        """Return an array's memory, `stride` bytes an element, as the program sees it.

        The array must be made with MapFlags.MMAPABLE. The memory lives as long as the view or a
        part of it does, even when the map is closed.
        """
        size = self.stride * self.spec.max_entries
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            memory = mmap.mmap(self.fd, size, mmap.MAP_SHARED, access)
        except OSError as err:
            raise BpfError(
                err.errno or 0,
                f"cannot map the map {self.name} into memory: {err.strerror}; only arrays made with"
                " BPF_F_MMAPABLE can be, and frozen ones only without writing",
            ) from err
        return memoryview(memory)


def packed(value: bytes | int | Handle, size: int) -> bytes:
    """Return a key or value as bytes."""
    if isinstance(value, Handle):
        value = value.fd
    return value.to_bytes(size, "little") if isinstance(value, int) else value


def rounded(size: int) -> int:
    """Return `size` rounded up to a multiple of 8, as the kernel lays out values."""
    return -(-size // 8) * 8
