"""The floors of the house, held by reading every import of platform/, actors/ and jobs/.

A module imports lower floors and its own room only; some packages have one door. Imports inside functions count: a late
import is still a dependency. Imports under ``if TYPE_CHECKING`` do not: they vanish at run time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: dict[str, int] = {
    # The kit and the nouns stand below the ground floor: everybody may use them, the configuration too.
    "framegrove.errors": -2,
    "framegrove.words": -2,
    "framegrove.files": -1,
    "framegrove.logs": -1,
    "framegrove.types": -1,
    "framegrove.__main__": -1,
    "framegrove.config": 0,
    "framegrove.lineage": 0,
    "framegrove.models": 1,
    "framegrove.media": 1,
    "framegrove.data": 1,
    "framegrove.curation": 2,
    "framegrove.flow": 2,
    "framegrove.verification": 2,
    "framegrove.search": 2,
    "framegrove.serving": 2,
    "framegrove.training": 3,
    "framegrove.evaluation": 3,
    "framegrove.digits": 3,
    "framegrove.cluster": 3,
    "framegrove.generators": 3,
    "actors": 4,
    "jobs": 5,
}

# A package on the left may be imported only by modules whose names start with one of those on the right.
DOORS: dict[str, tuple[str, ...]] = {
    "vllm": ("actors.verifier",),
    "deepspeed": ("framegrove.training.engine",),
    "diffusers": ("framegrove.generators.diffusion",),
    "ray": ("framegrove.cluster", "actors", "jobs"),
    # The embedded world is an example and a laboratory: the product works without it.
    "framegrove.digits": ("framegrove.digits", "jobs"),
}

# Rooms on the left, and nothing they import themselves, may do without the packages on the right.
LIGHT: dict[str, tuple[str, ...]] = {
    "framegrove.__main__": ("torch", "ray"),
    "framegrove.logs": ("torch", "ray"),
    "framegrove.types": ("torch", "ray"),
    "framegrove.lineage": ("torch", "ray"),
    "framegrove.config": ("torch", "ray"),
    "framegrove.search": ("torch", "ray"),
    "framegrove.curation": ("torch", "ray"),  # its stages run in many small processes
}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "platform":
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {
    module_name(path): path
    for root in ("platform", "actors", "jobs")
    for path in sorted((ROOT / root).rglob("*.py"))
    if "assets" not in path.parts
}


def imports_of(path: Path, module: str) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted name, at module level) of everything imported in a file, relative imports resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from _walk(tree, package, top=True)


def _walk(node: ast.AST, package: str, top: bool) -> Iterator[tuple[int, str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name, top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, package)
            yield from ((child.lineno, f"{base}.{alias.name}", top) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.orelse:
                yield from _walk(part, package, top)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, package, top and not inside)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    kept = parts[: len(parts) - node.level + 1]
    return ".".join([*kept, node.module] if node.module else kept)


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room_of(name: str) -> str | None:
    return next((room for room in FLOORS if starts_with(name, room)), None)


def broken_rules(module: str, name: str) -> Iterator[str]:
    """Every rule of the house that ``module`` breaks by importing ``name``."""
    own, other = room_of(module), room_of(name)
    if own and other and own != other and FLOORS[other] >= FLOORS[own]:
        level = "the same floor" if FLOORS[other] == FLOORS[own] else "a higher floor"
        yield f"{own} (floor {FLOORS[own]}) may not import {other}: it is on {level} ({FLOORS[other]})"
    for package, allowed in DOORS.items():
        if starts_with(name, package) and not any(starts_with(module, door) for door in allowed):
            yield f"{package} may be imported only in {', '.join(allowed)}"
    for room, heavy in LIGHT.items():
        for package in heavy:
            if starts_with(module, room) and starts_with(name, package):
                yield f"{room} must do without {package}"


def test_every_module_has_a_floor() -> None:
    homeless = [module for module in MODULES if module != "framegrove" and room_of(module) is None]
    assert not homeless, f"these modules are on no floor, move them or extend FLOORS: {', '.join(homeless)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_keep_to_the_floors(module: str) -> None:
    path = MODULES[module]
    problems = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}, but {rule}"
        for line, name, _ in imports_of(path, module)
        for rule in broken_rules(module, name)
    ]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_light_rooms_import_nothing_heavy_by_way_of_others(room: str) -> None:
    """Follow module-level imports inside this repository: none of them leads to a heavy package."""
    for start in (module for module in MODULES if starts_with(module, room)):
        for name, trail in reached_from(start):
            heavy = [package for package in LIGHT[room] if starts_with(name, package)]
            assert not heavy, f"{' -> '.join([*trail, name])}: importing {start} loads {heavy[0]}"


def reached_from(start: str) -> Iterator[tuple[str, list[str]]]:
    """Everything that importing ``start`` imports at module level, with the trail of modules that leads there."""
    waiting, seen = [(start, [start])], {start}
    while waiting:
        module, trail = waiting.pop()
        for _, name, top in imports_of(MODULES[module], module):
            if not top:
                continue
            yield name, trail
            for own in modules_loaded_by(name):
                if own not in seen:
                    seen.add(own)
                    waiting.append((own, [*trail, own]))


def modules_loaded_by(name: str) -> Iterator[str]:
    """The repository's modules that ``import name`` runs: the module itself and every package above it."""
    parts = name.split(".")
    return (prefix for end in range(1, len(parts) + 1) if (prefix := ".".join(parts[:end])) in MODULES)


def test_jobs_start_without_torch_and_ray() -> None:
    """`python -m jobs.NAME --help` is instant: torch and ray are imported inside the commands."""
    problems = []
    for start in (module for module in MODULES if starts_with(module, "jobs")):
        for name, trail in reached_from(start):
            if any(starts_with(name, heavy) for heavy in ("torch", "ray", "transformers", "vllm", "deepspeed")):
                problems.append(" -> ".join([*trail, name]))
    assert not problems, "import these inside the command function:\n" + "\n".join(problems)


def test_platform_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), (
        "platform/__init__.py makes a package called platform, which shadows the standard library's: remove it"
    )


@pytest.mark.parametrize(
    ("module", "name", "part"),
    [
        ("framegrove.flow.sampler", "framegrove.training.loop", "higher floor"),
        ("framegrove.search.tof", "framegrove.flow.noise", "same floor"),
        ("framegrove.search.tof", "torch.nn", "without torch"),
        ("framegrove.models.vae", "ray", "ray may be imported only in"),
        ("actors.generator", "vllm.sampling_params", "vllm may be imported only in actors.verifier"),
        ("framegrove.training.loop", "deepspeed", "deepspeed may be imported only in"),
        ("actors.searches", "jobs.demo", "higher floor"),
        ("actors.verifier", "framegrove.digits.world", "framegrove.digits may be imported only in"),
        ("framegrove.training.vae", "framegrove.digits.clips", "framegrove.digits may be imported only in"),
    ],
)
def test_a_broken_rule_is_named(module: str, name: str, part: str) -> None:
    assert any(part in rule for rule in broken_rules(module, name))


def test_what_is_allowed_passes() -> None:
    for module, name in [
        ("framegrove.flow.sampler", "framegrove.models.packed"),
        ("framegrove.flow.sampler", "framegrove.flow.noise"),
        ("framegrove.search.tof", "framegrove.types"),
        ("framegrove.cluster.session", "ray.util"),
        ("actors.verifier", "vllm"),
        ("jobs.train", "actors.trainer"),
        ("jobs.train_vae", "framegrove.digits.clips"),
    ]:
        assert not list(broken_rules(module, name)), (module, name)
