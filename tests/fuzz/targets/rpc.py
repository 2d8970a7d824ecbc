"""Lines on the control socket: each is answered with JSON, and none finds a fault of ours."""

from __future__ import annotations

import json
from typing import Any

from fuzzkit.world import PLUGINS, route

from lvskit import Director, LvskitError
from lvskit.control.api import Control
from lvskit.control.server import INTERNAL_ERROR, answers

_MOST_LINES = 4


def check(data: bytes) -> None:
    director = Director(PLUGINS, route, now=1000.0)
    control = Control(director, PLUGINS, lambda: 1000.0)
    faults: list[Exception] = []

    def call(method: str, params: object) -> Any:
        try:
            return control.call(method, params)
        except LvskitError:
            raise
        except Exception as err:
            faults.append(err)
            raise

    for line in data.split(b"\n")[:_MOST_LINES]:
        answer = b"".join(answers(call, line))
        assert not faults, repr(faults[0])
        if answer:
            assert answer.endswith(b"\n")
            assert answer.count(b"\n") == 1
            told = json.loads(answer)
            for each in told if isinstance(told, list) else [told]:
                assert each.get("error", {}).get("code") != INTERNAL_ERROR, each
    control.call("status")
    control.call("connections")
    director.expire(1100.0)
