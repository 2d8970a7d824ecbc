"""What an operator may choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class XdpOptions:
    """Options of the datapath `xdp`.

    Attributes:
        interface: where clients' packets come in, and tunnels leave.
        mode: of XDP: `native`, in the driver; `generic`, in front of the stack; `auto`, native
            where the driver has it.
        slots4, slots6: connections that the program has room for, by IP version, a power of two,
            16 or 32 bytes each; 0 = the first one beyond twice the director's `size`. At half of
            it, practically every connection finds a place.
        ring: bytes of records and first packets that may wait for the director; a power of two.
        pins: the directory, on a BPF file system, where the program and its maps are kept beyond
            a crash; None = one for each interface, "" = none.
        keep: leave the program at work in the end, until the next start.
        bypass: as of the datapath `live`.
        portable: other options of the datapath `live`, which carries what the program does not.
    """

    interface: str
    mode: Literal["auto", "native", "generic"] = "auto"
    slots4: int = 0
    slots6: int = 0
    ring: int = 1 << 22
    pins: str | None = None
    keep: bool = False
    bypass: bool = False
    portable: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("slots4", "slots6", "ring"):
            value = getattr(self, name)
            least = 4096 if name == "ring" else 8
            automatic = value == 0 and name != "ring"
            if not automatic and (value < least or value & (value - 1) or value > 1 << 30):
                raise ValueError(f"{name} {value}; allowed: a power of two, {least} to 2^30")
