"""A pytest plugin that tries changes: the tests are collected once, and each change gets a fork.

mutmut starts pytest anew for every change, which takes longer than the tests. Here the tests in
the file named after the module come first, then the quickest, so that the long recordings run only
for what nothing else noticed.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from time import process_time

import pytest

_STATISTICS = Path("mutmut-stats.json")
_MEMORY = 4 << 30
_NOTICED, _SURVIVED = 1, 0


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Try the changes that LVSKIT_CHANGES lists in its file; write there what became of them."""
    exchange = Path(os.environ["LVSKIT_CHANGES"])
    statistics = json.loads(_STATISTICS.read_text())
    seconds: dict[str, float] = statistics["duration_by_test"]
    runners: dict[str, list[str]] = statistics["tests_by_mangled_function_name"]
    items = {item.nodeid: item for item in session.items}
    statuses: dict[str, int] = {}
    for change in json.loads(exchange.read_text()):
        function = change.rpartition("__mutmut_")[0]
        nearest = f"/test_{function.split('.')[-2]}.py::"
        tests = runners.get(function, [])
        tests = sorted(tests, key=lambda name: (nearest not in name, seconds[name]))
        statuses[change] = _attempt(change, {items[name]: seconds[name] for name in tests})
    exchange.write_text(json.dumps(statuses))
    return True


def _attempt(change: str, tests: dict[pytest.Item, float]) -> int:
    """Return 0 where no test fails with the change; a test that never ends fails, too."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    status = _NOTICED
    try:
        os.environ["MUTANT_UNDER_TEST"] = change
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        for (item, seconds), following in zip(tests.items(), [*tests, None][1:], strict=True):
            resource.setrlimit(resource.RLIMIT_CPU, (int(process_time() + 10 * seconds + 3), -1))
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if item.session.testsfailed:
                break
        else:
            status = _SURVIVED
    finally:
        os._exit(status)
