"""That the benchmark works: what it says of time is not looked at."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench" / "xdp.py"
PARTS = {
    "packets": "ns per packet",
    "cable": "packets per CPU second",
    "connections": "connections per CPU second",
    "memory": "bytes per connection",
    "adoption": "seconds",
}
ALONE = ("sent back as it is", "new, by rr in the kernel", "director and bridge")

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_benchmark_runs(bpf: None, tmp_path: Path, part: str) -> None:
    if not shutil.which("ip"):
        pytest.skip("needs the command `ip` (iproute2)")
    found = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--only", part, "--json", found],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": ""},  # its parts are found beside it
    )
    assert not done.returncode, done.stderr
    rows = json.loads(found.read_text())["rows"]
    assert len(rows) > 2
    assert {row["unit"] for row in rows} == {PARTS[part]}
    for row in rows:
        assert math.isfinite(row["ours"])
        assert row["size"] > 0
        compared = part != "adoption" and row["what"] not in ALONE
        assert (row["lru_hash"] is not None) == compared, row
        assert f"  {row['what']} " in done.stdout
