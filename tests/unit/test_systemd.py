"""deploy/framegrove.service as systemd reads it, and against the exit statuses and options of the job that it runs."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from framegrove.config.serve import ServeConfig
from jobs import serve

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "framegrove.service"
MOST_EXPOSED = 30  # of 100, by systemd's own measure; a service without any hardening has 96

systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with an interpreter, a folder and a user that there are on this machine."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/framegrove/.venv/bin/python", sys.executable)
    path = tmp_path / UNIT.name
    path.write_text(text.replace("WorkingDirectory=/opt/framegrove", f"WorkingDirectory={tmp_path}"))
    return path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60)


@systemd
def test_systemd_understands_all_of_it(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@systemd
def test_a_mistake_in_it_would_be_seen(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "NoNewPrivilege" in analyze("verify", "--man=no", str(unit)).stderr


@systemd
def test_it_is_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(unit))
    assert done.returncode == 0, done.stdout[-2000:]


def test_it_says_what_the_job_means(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    service = dict(parser["Service"])
    assert service["Restart"] == "on-failure"
    prevented, clean = (service[name].split() for name in ("RestartPreventExitStatus", "SuccessExitStatus"))
    assert str(serve.GONE) not in (*prevented, *clean)
    assert clean == ["130"]
    started: list[ServeConfig] = []
    monkeypatch.setattr(serve, "_serve", started.append)
    _, module, name, *options = shlex.split(service["ExecStart"])
    assert (module, name) == ("-m", "jobs.serve")
    assert CliRunner().invoke(serve.app, options).exit_code == 0
    (config,) = started
    state = Path("/var/lib") / service["StateDirectory"]
    assert config.keys is not None
    assert state in config.folder.parents
    assert state in config.keys.parents
