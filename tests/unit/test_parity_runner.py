"""The parity tests know no configuration: they run on a set that was made with others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.parity.other_set import write_other_set

ROOT = Path(__file__).parents[2]


def test_parity_runs_on_any_set(tmp_path: Path) -> None:
    folder = write_other_set(tmp_path / "another set")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/parity", "--golden", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "22 passed" in done.stdout, done.stdout[-3000:]
