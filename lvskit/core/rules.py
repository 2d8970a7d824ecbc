"""The settings of a service as packets meet them.

Source: Linux net/netfilter/ipvs/ip_vs_ctl.c (update_defense_level), by behaviour.
"""

from __future__ import annotations

from typing import Final

from lvskit.core import states
from lvskit.settings import MODES, NAMES, Settings
from lvskit.types import SCTP, TCP, UDP

_SCTP: Final = tuple(name for name in NAMES if name.startswith("timeout_sctp_"))
_TCP: Final = tuple(
    name for name in NAMES if name.startswith("timeout_") and name not in (*_SCTP, "timeout_udp")
)


class Rules:
    """The settings of one service as packets meet them: bound once, read for every packet.

    Args:
        settings: what is set.
        free: entries that the table has room for; below `amemthresh` the defences set to 1 or 2
            are on.

    Attributes:
        settings: as given.
        tcp, udp, sctp: states and timeouts by protocol, and `machines`, all three by number.
        steady: for TCP; see `states.steady`.
        begun: state and timeout after a SYN, which both count as active and half open, where the
            server answers directly, and where it answers through here.
        automatic: some defence goes by the free entries.
        drop_entry: the defence is on.
        drop_rate: one new connection's packet in this many is dropped; 0 = none.
    """

    __slots__ = (
        "automatic", "begun", "drop_entry", "drop_rate", "machines", "sctp", "settings", "steady",
        "tcp", "udp",
    )  # fmt: skip

    def __init__(self, settings: Settings, free: int) -> None:
        missing = settings.amemthresh - free
        short = missing > 0

        def on(mode: int) -> bool:
            return mode == 3 or (short and mode > 0)

        def timeouts(names: tuple[str, ...]) -> list[float]:
            return [float(getattr(settings, name)) for name in names]

        self.settings = settings
        secure = on(settings.secure_tcp)
        self.steady = states.STEADY_SECURE if secure else states.STEADY
        self.tcp = states.Machine(states.TCP_SECURE if secure else states.TCP, timeouts(_TCP))
        begun = (self.tcp.tables.input_only, self.tcp.tables.input)
        first = [table[states.NONE][states.SYN] for table in begun]
        self.begun = [(state, self.tcp.timeouts[state]) for state in first]
        self.udp = states.Machine(states.UDP, timeouts(("timeout_udp",)))
        self.sctp = states.Machine(states.SCTP, timeouts(_SCTP))
        self.machines = {TCP: self.tcp, UDP: self.udp, SCTP: self.sctp}
        self.automatic = any(getattr(settings, mode) in (1, 2) for mode in MODES)
        self.drop_entry = on(settings.drop_entry)
        self.drop_rate = 0
        if settings.drop_packet == 3:
            self.drop_rate = settings.am_droprate
        elif on(settings.drop_packet):
            self.drop_rate = settings.amemthresh // missing


KERNEL: Final = Rules(Settings(), free=2**31)
"""What holds where nothing is set."""
