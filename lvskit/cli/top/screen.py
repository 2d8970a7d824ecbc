"""The screen of `lvskit top`; the only module that needs textual."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Input, Static

from lvskit.cli.top import LEAST_S, read, view
from lvskit.cli.top.figures import Figures, compare
from lvskit.config.status import Status
from lvskit.errors import LvskitError

_KEPT: Final = 240  # readings whose rates are remembered; more than columns on most screens
_INTERVALS: Final = (LEAST_S, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

Courses = dict[tuple[str, str], deque[float]]
"""Packets per second of the last readings, by `view.Line.key`."""


class Listing(ScrollView, can_focus=True):
    """The table of services and servers: titles that stay, and lines that scroll."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: Sequence[view.Line] = ()
        self._order = view.Order()
        self._courses: Mapping[tuple[str, str], Sequence[float]] = {}
        self._places = view.Layout((), 0)

    def show(self, rows: Sequence[view.Line], order: view.Order, courses: Courses) -> None:
        """Show `rows`."""
        self._rows, self._order, self._courses = rows, order, courses
        self.virtual_size = Size(0, len(rows) + 1)
        self._find_places()
        self.refresh()

    def on_resize(self) -> None:
        """Find the columns' places anew."""
        self._find_places()

    def _find_places(self) -> None:
        self._places = view.Layout(self._rows, self.scrollable_content_region.width)

    def render_line(self, y: int) -> Strip:
        """Return line `y` of what can be seen."""
        number = y + self.scroll_offset.y
        if y == 0:
            text = self._places.titles(self._order)
        elif number <= len(self._rows):
            row = self._rows[number - 1]
            text = self._places.line(row, self._courses.get(row.key, ()))
        else:
            text = Text()
        segments = text.render(self.app.console)
        strip = Strip(segments).adjust_cell_length(self.size.width)
        return strip.apply_style(self.rich_style)


class Top(App[None]):
    """Shows one reading after the other until told to quit.

    Args:
        interval_s: seconds between readings.
    """

    TITLE = "lvskit top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #heading { height: auto; padding: 0 0 1 0; }
    Listing { height: 1fr; scrollbar-size-vertical: 1; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    #said { height: 1; color: $text-muted; }
    #said.trouble { background: $error; color: $text; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "sort(-1)", "Sort", key_display="< >"),
        Binding("greater_than_sign", "sort(1)", show=False),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "all", show=False),
        Binding("p,space", "pause", "Pause", key_display="p"),
        Binding("plus", "interval(1)", "Interval", key_display="+ -"),
        Binding("minus", "interval(-1)", show=False),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self.interval_s = interval_s
        self._host = socket.gethostname()
        self._before: Status | None = None
        self._figures: Figures | None = None
        self._order = view.Order()
        self._wanted = ""
        self._paused = False
        self._trouble = ""
        self._conns: deque[float] = deque(maxlen=_KEPT)
        self._courses: Courses = {}
        self._hurry = asyncio.Event()
        self._heading, self._said = Static(id="heading"), Static(id="said")
        self._listing = Listing()
        self._filter = Input(id="filter", placeholder="part of a name, an address or a state")

    def compose(self) -> ComposeResult:
        """Put the parts below one another."""
        yield from (self._heading, self._listing, self._filter, self._said, Footer())

    def on_mount(self) -> None:
        """Begin to read."""
        self._listing.focus()
        self.run_worker(self._watch())

    # --- readings ---

    async def _watch(self) -> None:
        """Take a reading at each interval; where the daemon has gone, wait for it to be back."""
        while True:
            began = time.monotonic()
            self._hurry.clear()
            try:
                # In a thread of its own, for the daemon may take its time.
                self._take(await asyncio.to_thread(read))
            except LvskitError as err:
                self._trouble = str(err)
            self._show()
            try:
                left = began + self.interval_s - time.monotonic()
                await asyncio.wait_for(self._hurry.wait(), max(left, 0.01))
            except TimeoutError:
                pass

    def _take(self, now: Status) -> None:
        figures = compare(self._before, now)
        self._before, self._trouble = now, ""
        if self._paused:
            return
        self._figures = figures
        self._conns.append(figures.rates.conns)
        courses = self._courses
        self._courses = {}
        for line in view.lines(figures, view.Order()):
            course = courses.get(line.key) or deque(maxlen=_KEPT)
            course.append(line.row.rates.inpkts)
            self._courses[line.key] = course

    # --- the screen ---

    def _show(self) -> None:
        """Bring the screen to what is known."""
        if not self._listing.is_attached:
            return  # it has gone, or is still to come
        figures = self._figures
        rows: list[view.Line] = []
        if figures is not None:
            rows = view.lines(figures, self._order, self._wanted)
            heading = view.heading(figures, self._host, self._conns, self.size.width)
            self._heading.update(heading)
        self._listing.show(rows, self._order, self._courses)
        self._said.set_class(bool(self._trouble), "trouble")
        self._said.update(Text(self._trouble or self._summary(len(rows)), no_wrap=True))

    def _summary(self, shown: int) -> str:
        words = [f"every {self.interval_s:g} s"]
        if self._paused:
            words.append("PAUSED")
        if self._wanted:
            words.append(f"only “{self._wanted}” (Esc: all)")
        if not shown:
            words.append("nothing like that" if self._wanted else "no virtual services")
        return " · ".join(words)

    def on_resize(self) -> None:
        """Fill the new width."""
        self._show()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter by what has been typed so far."""
        self._wanted = event.value.strip()
        self._show()

    def on_input_submitted(self) -> None:
        """Keep the filter, and give the keys back to the table."""
        self._close_filter()

    # --- keys ---

    def action_sort(self, step: int) -> None:
        """Sort by the next column, or the one before."""
        column = (self._order.column + step) % (len(view.COLUMNS) + 1)
        self._order = view.Order(column, backward=False)
        self._show()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self._order = dataclasses.replace(self._order, backward=not self._order.backward)
        self._show()

    def action_pause(self) -> None:
        """Hold the picture, or let it go on with the next reading."""
        self._paused = not self._paused
        self._show()

    def action_interval(self, step: int) -> None:
        """Read more often, or less."""
        if step > 0:
            later = [each for each in _INTERVALS if each > self.interval_s]
            self.interval_s = min(later, default=self.interval_s)
        else:
            sooner = [each for each in _INTERVALS if each < self.interval_s]
            self.interval_s = max(sooner, default=self.interval_s)
        self._hurry.set()
        self._show()

    def action_filter(self) -> None:
        """Ask for the filter."""
        self._filter.display = True
        self._filter.focus()

    def action_all(self) -> None:
        """Show all services again."""
        self._filter.value = ""
        self._close_filter()

    def _close_filter(self) -> None:
        self._filter.display = False
        self._listing.focus()
