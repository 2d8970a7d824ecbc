"""The lines of `lvskit top`: what is in them, in which order, and that they fit."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvskit.cli.top import view
from lvskit.cli.top.figures import (
    Count,
    Datapath,
    Figures,
    Rates,
    ServerFigures,
    ServiceFigures,
    Table,
)
from lvskit.cli.top.words import bar, course, duration, fit, short

NO_RATES = Rates(0.0, 0.0, 0.0, 0.0, 0.0)
NONE = Count(0, 0.0)


def server(address: str, conns: float = 0.0, state: str = "", weight: int = 1) -> ServerFigures:
    rates = msgspec.structs.replace(NO_RATES, conns=conns)
    return ServerFigures(address, "tunnel", weight, 0, 0, state, rates)


def service(name: str, *servers: ServerFigures, scheduler: str = "wlc") -> ServiceFigures:
    rates = msgspec.structs.replace(NO_RATES, conns=sum(s.rates.conns for s in servers))
    return ServiceFigures(name, scheduler, len(servers), 0, 0, rates, list(servers))


def director(*services: ServiceFigures, datapath: Datapath | None = None) -> Figures:
    table = Table(65536, 1000, 10, NONE, NONE, NONE, NONE)
    datapath = datapath or Datapath("memory", {}, {}, {})
    return Figures(3700.0, 1.0, datapath, table, [], NO_RATES, list(services))


WEB = service("tcp 10.0.0.1:443", server("10.0.0.10:443", 1.0), server("10.0.0.9:443", 2.0))
DNS = service(
    "udp 10.0.0.1:53",
    server("10.0.0.9:53", 9.0),
    server("10.0.0.8:53", state="quiesced", weight=0),
    scheduler="rr",
)
OLD = service("tcp 10.0.0.1:80")
ALL = director(DNS, WEB, OLD)


def names(order: view.Order, wanted: str = "") -> list[str]:
    return [line.key[1].removeprefix("10.0.0.") for line in view.lines(ALL, order, wanted)]


W, D, O = "tcp 10.0.0.1:443", "udp 10.0.0.1:53", "tcp 10.0.0.1:80"  # noqa: E741


@pytest.mark.parametrize(
    ("order", "sorted_"),
    [
        (view.Order(), [O, W, "9:443", "10:443", D, "8:53", "9:53"]),
        (view.Order(backward=True), [D, "9:53", "8:53", W, "10:443", "9:443", O]),
        (view.Order(4), [D, "9:53", "8:53", W, "9:443", "10:443", O]),
        (view.Order(4, backward=True), [O, W, "10:443", "9:443", D, "8:53", "9:53"]),
        (view.Order(1), [W, "9:443", "10:443", D, "9:53", "8:53", O]),
    ],
)
def test_order(order: view.Order, sorted_: list[str]) -> None:
    assert names(order) == sorted_


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ("UDP", [D, "8:53", "9:53"]),
        ("rr", [D, "8:53", "9:53"]),
        ("0.0.9:", [W, "9:443", D, "9:53"]),
        ("quiesced", [D, "8:53"]),
        ("nowhere", []),
    ],
)
def test_filter(wanted: str, left: list[str]) -> None:
    assert names(view.Order(), wanted) == left


def shown(figures: Figures, width: int, order: view.Order | None = None) -> list[str]:
    order = order or view.Order()
    rows = view.lines(figures, order)
    layout = view.Layout(rows, width)
    course = range(100)
    return [layout.titles(order).plain, *(layout.line(row, course).plain for row in rows)]


def test_the_table_in_80_columns() -> None:
    assert shown(director(DNS), 80) == [
        "Service, server▴             Weight Active InAct   CPS InPPS OutPPS InBPS OutBPS",
        "udp 10.0.0.1:53 rr                2      0     0     9     0      0     0      0",
        "  10.0.0.8:53 quiesced            0      0     0     0     0      0     0      0",
        "  10.0.0.9:53                     1      0     0     9     0      0     0      0",
    ]


def test_the_title_says_the_order() -> None:
    assert " ▾CPS " in shown(ALL, 80, view.Order(4))[0]
    assert " ▴CPS " in shown(ALL, 80, view.Order(4, backward=True))[0]
    assert "server▾ " in shown(ALL, 80, view.Order(backward=True))[0]


def test_a_wide_screen_has_the_course() -> None:
    title, *lines = shown(ALL, 100)
    assert title.endswith(" OutBPS InPPS, the last 25       ")
    assert all(line.endswith(f" {course(range(100), 25)}") for line in lines)


text = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
amount = st.floats(0, 1e18)
state = st.sampled_from(("", "quiesced", "overloaded", "unreachable"))


@given(
    st.lists(st.tuples(text, state, amount), max_size=4),
    text,
    st.integers(60, 200),
    st.integers(0, len(view.COLUMNS)),
    st.booleans(),
)
def test_every_line_is_as_long_as_the_screen(
    servers: list[tuple[str, str, float]], name: str, width: int, column: int, backward: bool
) -> None:
    rows = [server(address, conns, of) for address, of, conns in servers]
    figures = director(service(name, *rows))
    for line in shown(figures, width, view.Order(column, backward)):
        assert len(line) == width


def heading(figures: Figures, width: int = 80) -> list[str]:
    return view.heading(figures, "lb1", [1.0, 2.0], width).plain.split("\n")


def test_the_heading_without_news() -> None:
    assert heading(ALL) == [
        "lb1  up 1 h 1 min  datapath memory",
        "table ▎                    2%  1,000 of 65,536 entries, 10 half-open",
        "CPS 0  InPPS 0  OutPPS 0  InBPS 0  OutBPS 0                               ▄█ CPS",
        "shed 0/s (0)  refused 0/s (0)  drop_entry 0/s (0)  drop_packet 0/s (0)  ",
    ]


def test_the_heading_tells_of_the_datapath_and_the_defences() -> None:
    figures = {"forwarded": Count(10**9, 1_234_567.0), "misses": Count(12, None)}
    lost = {"ring_full": Count(1500, 2.0), "slots_full": Count(3, 0.0), "not_sent": Count(0, 0.0)}
    busy = msgspec.structs.replace(
        director(datapath=Datapath("xdp", {"interface": "eth0"}, figures, lost)),
        defences=["drop_entry"],
        table=Table(1000, 950, 900, Count(70, 7.0), Count(2, None), NONE, NONE),
    )
    assert [line.rstrip() for line in heading(busy, 100)] == [
        "lb1  up 1 h 1 min  datapath xdp, interface eth0",
        "table ███████████████████  95%  950 of 1,000 entries, 900 half-open",
        "CPS 0  InPPS 0  OutPPS 0  InBPS 0  OutBPS 0" + " " * 51 + "▄█ CPS",
        "shed 7/s (70)  refused -/s (2)  drop_entry 0/s (0)  drop_packet 0/s (0)  "
        "at work: drop_entry",
        "xdp/s  forwarded 1.2M  misses -",
        "lost 2/s (1,500 ring_full, 3 slots_full)",
    ]
    assert all(len(line) <= 40 for line in heading(busy, 40))


def test_alarms_have_their_colour() -> None:
    def styles(entries: int, shed: float) -> set[str]:
        table = Table(100, entries, 0, Count(9, shed), NONE, NONE, NONE)
        of = view.heading(msgspec.structs.replace(ALL, table=table), "lb1", [], 80)
        return {str(span.style) for span in of.spans}

    assert view.ALARM not in styles(10, 0.0)
    assert view.ALARM in styles(10, 1.0)
    assert f"{view.ALARM} on grey23" in styles(90, 0.0)
    layout = view.Layout((), 80)
    for of, colour in view.STATES.items():
        line = view.Line("", server("10.0.0.1:80", state=of))
        assert str(layout.line(line, ()).style) == colour


@given(st.floats(0, 1e20, allow_nan=False))
def test_amounts_are_short_and_near(value: float) -> None:
    said = short(value)
    assert len(said) <= 5
    if value >= 0.05:
        number, unit = (said[:-1], said[-1]) if said[-1].isalpha() else (said, "")
        assert float(number) * 1000 ** " kMGTPE".index(unit or " ") == pytest.approx(
            value, rel=0.06, abs=0.051
        )


@given(st.floats(0, 1), st.integers(1, 50), st.lists(st.floats(0, 1e9), max_size=60))
def test_drawings_have_their_width(share: float, width: int, values: list[float]) -> None:
    assert len(bar(share, width)) == width
    assert len(course(values, width)) == width


@given(st.text(max_size=60), st.integers(1, 50))
def test_what_fits_stays(text: str, width: int) -> None:
    said = fit(text, width)
    assert len(said) <= width
    assert said == text or len(text) > width


@given(st.floats(0, 1e9))
def test_durations_are_said(seconds: float) -> None:
    assert duration(seconds).split()[1::2] in (["s"], ["min", "s"], ["h", "min"], ["d", "h"])
