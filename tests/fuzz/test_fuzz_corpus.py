"""Every input that the fuzzer found worth keeping, faults above all, does no harm any more."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_input(path: Path) -> None:
    importlib.import_module(f"targets.{path.parent.name}").check(path.read_bytes())


def test_every_target_has_a_corpus() -> None:
    targets = {path.stem for path in (CORPUS.parent / "targets").glob("*.py")}
    assert targets == {path.parent.name for path in INPUTS}
