"""What a process gives up, it does not get back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import subprocess, sys
from lvskit.control.privileges import keep_only

def held():
    text = open("/proc/thread-self/status").read()
    return [text.partition(f"Cap{which}:")[2].split()[0] for which in ("Inh", "Prm", "Eff", "Amb")]

keep_only({12, 39, 63})
print(*held())
keep_only({12, 13})
print(*held())
executed = subprocess.run(["grep", "CapEff", "/proc/self/status"], capture_output=True, text=True)
print(executed.stdout.split()[1])
"""


def test_only_what_is_named_is_kept() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to have something to give up")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    first, second, executed = done.stdout.splitlines()

    def bits(*numbers: int) -> str:
        return f"{sum(1 << number for number in numbers):016x}"

    assert first == f"{bits()} {bits(12, 39)} {bits(12, 39)} {bits()}"
    assert second == f"{bits()} {bits(12)} {bits(12)} {bits()}"  # 13 had been given up
    assert executed == bits(12)


def test_nothing_to_give_up() -> None:
    program = "from lvskit.control.privileges import keep_only; keep_only(())"
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0
