"""docs/reference/rpc.md: it names every method, and every example is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lvskit import Director, load_plugins
from lvskit.config.status import DatapathStatus
from lvskit.control.api import Control
from lvskit.control.datapaths import MemoryDatapath, MemoryOptions
from lvskit.control.server import answers

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "rpc.md").read_text()
EXAMPLES = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)]


class Clock:
    now = 0.0


@pytest.fixture
def control() -> Control:
    plugins = load_plugins()
    director = Director(plugins, MemoryDatapath(MemoryOptions()).routes)
    memory = DatapathStatus("memory", {}, {})
    return Control(director, plugins, lambda: Clock.now, datapath=lambda: memory)


def test_every_method_has_its_section(control: Control) -> None:
    sections = re.findall(r"^### (\w+)$", PAGE, re.M)
    assert sorted(sections) == sorted(control.methods)


def test_every_example_is_what_happens(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()
    for request, shown in zip(EXAMPLES[::2], EXAMPLES[1::2], strict=True):
        if request["method"] == "status":
            # The page's client opens a connection between two folds of the statistics.
            control.director.expire(2.0)
            head = bytes([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 168, 1, 176])
            syn = bytes([4, 0, 0, 23, *bytes(8), 0x50, 2, 4, 0, 0, 0, 0, 0])
            control.director.receive(head + syn, 2.0)
            monkeypatch.setattr(Clock, "now", 4.0)
        asked.add(request["method"])
        line = json.dumps(request).encode()
        answer: Any = json.loads(b"".join(answers(control.call, line)))
        if request["method"] in ("plugins", "settings"):  # which the page shortens
            there = answer["result"]
            if request["method"] == "plugins":
                there = [row | {"version": "0.1.0"} for row in there]
            assert shown["result"]
            assert all(row in there for row in shown["result"])
        else:
            assert answer == shown
    assert asked == set(control.methods)
