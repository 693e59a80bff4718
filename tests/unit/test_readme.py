"""What README and its pages say exists: options, targets, files, links; their Python runs.

tests/ray/test_readme.py runs their commands.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import click
import pytest
import typer

from framegrove.evaluation.report import report_json
from tests import readme
from tests.readme import ROOT
from tests.unit.test_report import search_record


@pytest.mark.parametrize(("job", "arguments"), readme.jobs(), ids=lambda each: each if isinstance(each, str) else "")
def test_every_option_exists_and_takes_what_is_given(job: str, arguments: list[str]) -> None:
    command = typer.main.get_command(importlib.import_module(job).app)
    command.make_context(job, list(arguments))  # raises for an option that is unknown, missing or of another type


@pytest.mark.parametrize(
    ("words", "module", "name"),
    [
        (["ray", "job", "submit"], "ray.dashboard.modules.job.cli", "submit"),
        (["ray", "start"], "ray.scripts.scripts", "start"),
    ],
    ids=["submit", "start"],
)
def test_every_option_of_rays_commands_exists(words: list[str], module: str, name: str) -> None:
    command = getattr(importlib.import_module(module), name)
    known = {option for parameter in command.params for option in parameter.opts}
    lines = [line for block in readme.blocks() for line in block.commands if line[: len(words)] == words]
    ours = [line[: line.index("--")] if "--" in line else line for line in lines]
    used = {word for line in ours for word in line if word.startswith("--")}
    assert used
    assert used <= known


def test_every_target_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`+[^`]+`+", readme.TEXT)))
    assert {"demo", "setup", "test"} <= set(named) <= set(targets)


def test_every_file_exists() -> None:
    named = re.findall(r"[`(]((?:platform|jobs|tests|actors|deploy)/[\w./-]+)[`)]", readme.TEXT)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []
    (listing,) = re.findall(r"^```\n(platform/.*?)^```$", readme.TEXT, re.MULTILINE | re.DOTALL)
    above = ROOT
    for line in listing.splitlines():
        indent, names = re.fullmatch(r"( *)(\S+(?: \S+)*?)  .*", line).groups()  # type: ignore[union-attr]
        above = above if indent else ROOT
        for name in names.split():
            assert (above / name).exists(), name
        if not indent:
            above = ROOT / names


def test_the_first_page_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < 300


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    for link in (each for each in links if not each.startswith("https://")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, link


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/green7").mkdir(parents=True)
    Path("runs/green7/report.json").write_text(json.dumps(report_json(search_record())))
    tree, sample, adapter = readme.blocks("python")
    exec(compile(sample.text, "README.md", "exec"), {})
    assert capsys.readouterr().out == "(57, 64, 64, 3)\n"
    assert Path("runs/sample.mp4").stat().st_size > 1000
    exec(compile(tree.text, "README.md", "exec"), {})
    assert "[1, 0, 0, 0] won" in capsys.readouterr().out
    example = (ROOT / "platform/framegrove/generators/example.py").read_text(encoding="utf-8")
    assert example.endswith("\n\n" + adapter.text), "what tests/ray/test_adapted.py searches"


def test_help_loses_nothing_to_markup() -> None:
    """Square brackets, for one, are what rich would take for markup."""
    for path in sorted((ROOT / "jobs").glob("*.py")):
        app = getattr(importlib.import_module(f"jobs.{path.stem}"), "app", None)
        if app is None:
            continue
        command = typer.main.get_command(app)
        shown = " ".join(command.get_help(click.Context(command, info_name=path.stem)).split())
        for parameter in command.params:
            text = " ".join((getattr(parameter, "help", None) or "").split())
            assert text.replace("- ", "-") in shown.replace("- ", "-"), f"{path.stem}: {text}"
