"""What jobs.serve makes of its options."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from framegrove.config.serve import ServeConfig
from framegrove.config.verifier import load_panel
from jobs import serve
from jobs.console import model_source


def test_paths_become_absolute_wherever_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "verifier", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "verifier.yaml").write_text("verifiers: [{engine: {model: verifier}}]")
    panels = [load_panel(name) for name in ("verifier.yaml", "verifier", "owner/name")]
    models = [panel.verifiers[0].engine.model for panel in panels]
    assert models == [str(tmp_path / "verifier"), str(tmp_path / "verifier"), "owner/name"]
    given = {"model": model_source("model", "384p", "bfloat16", True).model_dump(), "folder": "videos", "generators": 3}
    config = serve.configured(
        given, ["verifier.verifiers=[{engine: {model: other}}]", "model.variant=768p", "most_budget=8x"]
    )
    assert config.model.model_dump(exclude_none=True) == {
        "name": str(tmp_path / "model"),
        "variant": "768p",
        "dtype": "bfloat16",
        "allow_pickle": True,
    }
    assert (config.folder, config.verifier.verifiers[0].engine.model) == (tmp_path / "videos", str(tmp_path / "other"))
    assert (config.generators, config.most_budget) == (3, "8x")


def test_help_names_every_setting() -> None:
    told = CliRunner().invoke(serve.app, ["--help"], env={"COLUMNS": "200"}).output
    assert not [name for name in ServeConfig.model_fields if name not in told]
