"""Invented scenarios: the memory datapath against the living kernel.

The kernel is no part of the project: the environment variable LVSKIT_ORACLE_ASK names the program
that asks it. LVSKIT_DIFFERENTIAL_SEED, _COUNT and _PROFILE choose what is asked, _KEEP names a
folder for the scenarios that differ.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from compare import ASK, compare_all, recorded
from generate import scenario

from lvskit import load_plugins

SEED = int(os.environ.get("LVSKIT_DIFFERENTIAL_SEED", "1"))
COUNT = int(os.environ.get("LVSKIT_DIFFERENTIAL_COUNT", "10"))
PROFILE = os.environ.get("LVSKIT_DIFFERENTIAL_PROFILE", "everything")


@pytest.mark.timeout(600)
def test_lvskit_does_what_the_kernel_does(tmp_path: Path) -> None:
    if not os.environ.get(ASK):
        pytest.skip(f"{ASK} does not name a program that asks the kernel")
    folder = Path(os.environ.get("LVSKIT_DIFFERENTIAL_KEEP", tmp_path))
    questions = [scenario(PROFILE, SEED, number) for number in range(COUNT)]
    differences = []
    for result, answer in compare_all(questions, load_plugins(strict=True)):
        assert result.kind != "unanswered", f"{result.name}: the kernel gave no answer"
        if result.kind == "differs":
            path = folder / f"{result.name}.json"
            path.write_text(json.dumps(recorded(answer), indent=1) + "\n")
            differences.append(f"{path}: {result.detail}")
    assert not differences, "\n".join(differences)
