"""That the verifier lets the program in as other compilers make it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from lvskit_datapath_xdp.loader import BpfObject
from xdp_kernel import OBJECT

COMPILERS = [
    name
    for name in ("clang", *(f"clang-{version}" for version in range(14, 30)))
    if shutil.which(name)
]
OPTIONS = ("-target", "bpfel", "-mcpu=v3", "-O2", "-g", "-std=gnu11", "-Wall", "-Werror", "-c")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_program_is_let_in(bpf: None, compiler: str, tmp_path: Path) -> None:
    target = tmp_path / "program.o"
    command = [compiler, *OPTIONS, str(OBJECT.with_suffix(".c")), "-o", str(target)]
    subprocess.run(command, check=True)
    with BpfObject.read(target).load() as loaded:
        assert loaded.programs["lvskit"].test_run(bytes(64)).verdict == 2


def test_the_license_lets_it_use_the_kernels_helpers() -> None:
    assert BpfObject.read(OBJECT).license == "Dual MIT/GPL"
