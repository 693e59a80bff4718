"""jobs.evaluate on actors: judges apart, and a search that was interrupted after it had sampled everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from jobs import evaluate
from jobs.evaluations import comparing, measuring
from tests.tiny import save_tiny

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster

pytestmark = pytest.mark.timeout(600)


def test_nothing_is_sampled_twice(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for name, function in (("inside", "tests.unit.test_judging_job:undecided"), ("apart", "tests.fakes:redness")):
        entry = f"{{name: {name}, kind: callable, function: '{function}'}}"
        (tmp_path / f"{name}.yaml").write_text(f"verifiers: [{entry}]\n")
    out = tmp_path / "out"
    given = ["--policies", "linear", "--budgets", "2x", "--prompts", "2", "--digits", "1", "--out", str(out)]
    given += ["--model", str(save_tiny(tmp_path / "tiny")), "--generators", "1"]
    given += ["--verifier", str(tmp_path / "inside.yaml"), "--held-out", str(tmp_path / "apart.yaml")]
    measured, calls = measuring.measured, 0

    async def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the machine of the second search is gone")
        return await measured(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measured", dies)
        first = CliRunner().invoke(evaluate.app, given)
    assert first.exit_code == 70
    (journal,) = (out / "unfinished").iterdir()
    assert journal.name == "1-0-linear 2x"
    assert len(rows(out)) == 1
    second = CliRunner().invoke(evaluate.app, given)
    assert second.exit_code == 0, second.output
    one, other = rows(out)
    assert [one["resumed"], other["resumed"]] == [False, True]
    assert one["nfe"] == other["nfe"], "what a journal gave back is paid once"
    assert set(one["held_out"]) == {"apart/score"}
    assert [Path(row["video"]).name for row in (one, other)] == ["0000.mp4", "0001.mp4"]
    assert not (out / "unfinished").exists()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / comparing.LEDGER).read_text().splitlines()[1:]]
