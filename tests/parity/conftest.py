"""Tells how far off the worst of each kind of tensor was."""

from __future__ import annotations

import pytest

from tests.parity.recorded import WORST


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not WORST:
        return
    terminalreporter.section("worst differences from the recorded tensors")
    for kind, (off, share, what) in sorted(WORST.items()):
        terminalreporter.write_line(f"{kind:16} {off:.1e}  {share:6.1%} of what is allowed  ({what})")
