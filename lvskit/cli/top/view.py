"""What the screen shows, as styled text: a heading, a line for each service and server. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from rich.text import Text

from lvskit.cli.top.figures import (
    OVERLOADED,
    QUIESCED,
    UNREACHABLE,
    Count,
    Figures,
    ServerFigures,
    ServiceFigures,
)
from lvskit.cli.top.words import bar, course, duration, fit, short

Subject = ServiceFigures | ServerFigures
_Rows = TypeVar("_Rows", ServiceFigures, ServerFigures)

LABEL: Final = "grey58"
ALARM: Final = "bold red"
STATES: Final = {UNREACHABLE: "red", OVERLOADED: "yellow", QUIESCED: "cyan"}
"""The colour of a server's line by its state."""
_CHOSEN: Final = "bold reverse"
_TITLE: Final = "Service, server"
_TREND: Final = "InPPS"
_LEAST_TREND: Final = 8
_BAR: Final = 20


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, its width, and what it shows of a service or server."""

    title: str
    width: int
    value: Callable[[Subject], float]


NAME: Final = 0
"""The number of the column with the names; the others follow it, in the order of `COLUMNS`."""
COLUMNS: Final = (
    Column("Weight", 6, lambda it: it.weight),
    Column("Active", 6, lambda it: it.active),
    Column("InAct", 5, lambda it: it.inactive),
    Column("CPS", 5, lambda it: it.rates.conns),
    Column("InPPS", 5, lambda it: it.rates.inpkts),
    Column("OutPPS", 6, lambda it: it.rates.outpkts),
    Column("InBPS", 5, lambda it: it.rates.inbytes),
    Column("OutBPS", 6, lambda it: it.rates.outbytes),
)
_NUMBERS: Final = sum(column.width + 1 for column in COLUMNS)


@dataclass(frozen=True)
class Order:
    """How services, and the servers of each, are sorted.

    Attributes:
        column: `NAME`, by name from the first one; others from the largest number.
        backward: the other way round.
    """

    column: int = NAME
    backward: bool = False

    def sort(self, rows: Sequence[_Rows]) -> list[_Rows]:
        """Return `rows` in this order; those that are equal, by name."""
        ordered = sorted(rows, key=_by_name)
        if self.column != NAME:
            ordered.sort(key=COLUMNS[self.column - 1].value, reverse=True)
        return ordered[::-1] if self.backward else ordered


def _by_name(row: Subject) -> list[tuple[int, str]]:
    """Return what sorts `:80` before `:443`, and `10.0.0.9` before `10.0.0.10`."""
    parts = re.split(r"(\d+)", _name(row))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _name(row: Subject) -> str:
    return row.name if isinstance(row, ServiceFigures) else row.address


@dataclass(frozen=True)
class Line:
    """A line of the table: `row`, which is a server of `service`, or the service itself."""

    service: str
    row: Subject

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others."""
        return self.service, _name(self.row)

    @property
    def label(self) -> tuple[str, str]:
        """Its name, and what is to be said about it."""
        if isinstance(self.row, ServiceFigures):
            return self.row.name, self.row.scheduler
        return f"  {self.row.address}", self.row.state


def lines(figures: Figures, order: Order, wanted: str = "") -> list[Line]:
    """Return the lines of the table.

    Args:
        figures: what is.
        order: how they are sorted.
        wanted: services whose names or schedulers have this in them, with all of their servers, and
            servers whose addresses or states have it, with their services.
    """
    word = wanted.casefold()
    shown: list[Line] = []
    for service in order.sort(figures.services):
        servers = order.sort(service.servers)
        if word not in f"{service.name} {service.scheduler}".casefold():
            servers = [each for each in servers if word in f"{each.address} {each.state}"]
            if not servers:
                continue
        shown.append(Line(service.name, service))
        shown += [Line(service.name, server) for server in servers]
    return shown


class Layout:
    """Where the columns are.

    Args:
        rows: the lines that shall be shown.
        width: characters in a line.

    Attributes:
        name: the width of the names; trend: that of the course of packets, 0 where there is no
            room for it.
    """

    def __init__(self, rows: Sequence[Line], width: int) -> None:
        room = max(width - _NUMBERS, 0)
        longest = max((len(" ".join(line.label)) for line in rows), default=0)
        left = room - max(longest, len(_TITLE) + 1) - 1
        self.trend = left if left >= _LEAST_TREND else 0
        self.name = room - (self.trend + 1 if self.trend else 0)

    def titles(self, order: Order) -> Text:
        """Return the line above all."""
        text = Text(no_wrap=True)
        arrow = "▴" if order.backward != (order.column == NAME) else "▾"
        names = [_TITLE, *(column.title for column in COLUMNS)]
        for number, name in enumerate(names):
            chosen = number == order.column
            if number == NAME:
                cell = f"{name}{arrow if chosen else ''}"[: self.name].ljust(self.name)
            else:
                width = COLUMNS[number - 1].width + 1
                cell = f"{arrow if chosen else ''}{name}".rjust(width)
            text.append(cell, _CHOSEN if chosen else "bold")
        if self.trend:
            title = f" {_TREND}, the last {self.trend}"
            text.append(title[: self.trend + 1].ljust(self.trend + 1), "bold")
        return text

    def line(self, line: Line, history: Sequence[float]) -> Text:
        """Return one of the table; `history`: the packets per second of its last readings."""
        row = line.row
        style = "bold"
        if isinstance(row, ServerFigures):
            style = STATES.get(row.state, "")
        name, note = line.label
        text = Text(no_wrap=True, style=style)
        name = fit(name, self.name)
        text.append(name)
        text.append(f" {note}"[: self.name - len(name)].ljust(self.name - len(name)), "not bold")
        for column in COLUMNS:
            value = column.value(row)
            text.append(short(value).rjust(column.width + 1), "" if value else LABEL)
        if self.trend:
            text.append(f" {course(history, self.trend)}", "green")
        return text


def heading(figures: Figures, host: str, conns: Sequence[float], width: int) -> Text:
    """Return what is above the table: the director as a whole.

    Args:
        figures: what is.
        host: the director's name.
        conns: the connections per second of the last readings.
        width: characters in a line.
    """
    carrying = figures.datapath
    facts = "".join(f", {name} {value}" for name, value in carrying.facts.items())
    head = Text.assemble(
        (host, "bold"), f"  up {duration(figures.uptime_s)}  ", ("datapath ", LABEL),
        carrying.name, facts,
    )  # fmt: skip
    rows = [head, _table(figures), _rates(figures, conns, width), _given_up(figures)]
    if carrying.figures:
        rows.append(_counts(f"{carrying.name}/s", carrying.figures))
    if any(count.total for count in carrying.lost.values()):
        rows.append(_lost(carrying.lost))
    for row in rows:
        row.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True).join(rows)


def _table(figures: Figures) -> Text:
    table = figures.table
    share = table.entries / table.size
    style = ALARM if share >= 0.9 else "yellow" if share >= 0.75 else "green"
    return Text.assemble(
        ("table ", LABEL), (bar(share, _BAR), f"{style} on grey23"), f" {share:.0%}  ",
        f"{table.entries:,} of {table.size:,} entries, {table.half_open:,} half-open",
    )  # fmt: skip


def _rates(figures: Figures, conns: Sequence[float], width: int) -> Text:
    rates = figures.rates
    text = Text()
    shown = {
        "CPS": rates.conns, "InPPS": rates.inpkts, "OutPPS": rates.outpkts,
        "InBPS": rates.inbytes, "OutBPS": rates.outbytes,
    }  # fmt: skip
    for name, value in shown.items():
        text.append(f"{name} ", LABEL)
        text.append(f"{short(value)}  ", "bold" if value else "")
    left = width - len(text) - len(" CPS")
    if left >= _LEAST_TREND:
        text.append(course(conns, left), "green").append(" CPS", LABEL)
    return text


def _given_up(figures: Figures) -> Text:
    table = figures.table
    counts = {
        "shed": table.shed,
        "refused": table.refused,
        "drop_entry": table.dropped_entries,
        "drop_packet": table.dropped_packets,
    }
    text = Text()
    for name, count in counts.items():
        text.append(f"{name} ", LABEL)
        text.append(f"{short(count.per_s)}/s", ALARM if count.per_s else "")
        text.append(f" ({short(count.total)})  ", LABEL)
    if figures.defences:
        text.append(f"at work: {', '.join(figures.defences)}", "yellow")
    return text


def _counts(title: str, counts: Mapping[str, Count]) -> Text:
    text = Text.assemble((f"{title} ", LABEL))
    for name, count in counts.items():
        text.append(f" {name} ", LABEL).append(f"{short(count.per_s)} ", "bold" * bool(count.per_s))
    return text


def _lost(counts: Mapping[str, Count]) -> Text:
    now = any(count.per_s for count in counts.values())
    places = [f"{count.total:,} {name}" for name, count in counts.items() if count.total]
    style = ALARM if now else "yellow"
    per_s = sum(count.per_s or 0.0 for count in counts.values())
    return Text.assemble(("lost ", LABEL), (f"{short(per_s)}/s", style), f" ({', '.join(places)})")
