"""jobs.collect over a cache, with a tiny model and a callable verifier: what is kept, and that it is kept once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from framegrove.data.harvest import Crop, Harvest, harvesting
from framegrove.data.ingest import open_catalog
from framegrove.data.reading import ClipReader
from framegrove.data.schema import LatentClip, from_table
from framegrove.errors import UserError
from framegrove.evaluation import preferences
from framegrove.search.fusion import product
from framegrove.search.result import Fate, Node
from framegrove.training.setup import Setup
from framegrove.types import Assessment
from jobs import collect, collecting
from tests.tiny import save_tiny
from tests.tiny_training import PHASE, make_config
from tests.unit.test_preference import pair

LINES = "a red 3\n\n  a red   3  \na blue 5\na green 2\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a panel, and prompts with an empty line and one that comes twice."""
    made = tmp_path_factory.mktemp("collect")
    save_tiny(made / "tiny")
    (made / "panel.yaml").write_text("verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness'}]\n")
    (made / "prompts.txt").write_text(LINES)
    return made


def run(folder: Path, out: Path, *more: str, status: int = 0) -> Result:
    given_ = [
        "--prompts",
        str(folder / "prompts.txt"),
        "--model",
        str(folder / "tiny"),
        "--units",
        "3",
        "--budget",
        "8x",
    ]
    given_ += ["--verifier", str(folder / "panel.yaml"), "--cache", str(folder / "cache"), "--out", str(out)]
    result = CliRunner().invoke(collect.app, [*given_, "--margin", "0", "--least", "0", "--policy", "tree", *more])
    assert result.exit_code == status, result.output
    return result


def rows(out: Path, name: str) -> list[LatentClip]:
    paths = sorted((out / name).glob("*.parquet"))
    return [clip for path in paths for clip in from_table(pq.read_table(path))]


def test_winners_and_pairs_of_siblings_are_kept_and_a_model_learns_from_them(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(folder, out)
    assert "3 searches: 3 winners" in result.output
    examples, pairs = rows(out, "examples"), rows(out, "pairs")
    assert sorted(clip.caption for clip in examples) == ["a blue 5", "a green 2", "a red 3"]
    assert all(clip.units == 3 and clip.caption_source == "search" for clip in examples)
    assert len(pairs) > 3
    for clip in pairs:
        assert clip.rival is not None
        assert clip.rival.chances[0] >= clip.rival.chances[1]  # in 32 bits
        assert clip.rival.scores.keys() == {"score"}
        assert not np.array_equal(clip.latents[:, -1:], clip.rival.latents)
    assert len({clip.id for clip in pairs}) == len(pairs)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["pairs"] == len(pairs) <= summary["compared"]
    assert sum(sum(row["margins"]) for row in summary["by_unit"]) == summary["compared"]

    # The winner's latents are what the model sampled: it learns from them and from the pairs without another step.
    objective = {"stage_weights": [1, 1, 1], "preference": {"kind": "prefer", "beta": 100}}
    phase = PHASE | {"name": "learn", "units": 3, "steps": 1, "objective": objective, "images": 0.4}
    data = [{"path": str(out / name)} for name in ("examples", "pairs")]
    setup = Setup.of(make_config(folder, data=data, model={"start": str(folder / "tiny")}, phases=[phase]))
    assert len(setup.feed().at(0).packs[0]) == 6

    before = {path: path.read_bytes() for path in out.rglob("*.parquet")}
    again = run(folder, out)
    assert "3 searches: 3 winners" in again.output
    assert {path: path.read_bytes() for path in out.rglob("*.parquet")} == before


def test_more_prompts_go_on_and_another_way_of_collecting_is_refused(folder: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", tmp_path / "more.txt"
    run(folder, out)
    first = {clip.id for clip in rows(out, "pairs")}
    more.write_text("a blue 7\n" + LINES)
    assert "4 searches" in run(folder, out, "--prompts", str(more)).output
    assert first < {clip.id for clip in rows(out, "pairs")}
    for option, value, says in (("--margin", "2", "its margin is 0.0"), ("--seed", "5", "its seed is 0")):
        assert says in run(folder, out, option, value, status=1).output
    other = save_tiny(tmp_path / "other", seed=1)
    assert "its m" in run(folder, out, "--model", str(other), status=1).output  # made_by or model


def test_what_leaves_nothing_to_learn_from_is_told_with_its_numbers(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "out", "--margin", "50", "--least", "1", status=1)
    assert "nothing is left to learn from" in result.output
    assert "none differs by 50 in log-odds" in " ".join(result.output.split())


def test_a_winner_that_nobody_has_judged_is_no_example(folder: Path, tmp_path: Path) -> None:
    """Depth first, a search that reaches its cap ends with a video as it is."""
    run(folder, tmp_path / "out", "--policy", "dfs", "--budget", "1.5x")
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (found["searches"], found["examples"]) == (3, 0)


@pytest.mark.parametrize(
    ("given_", "says"),
    [("digits:0", "write how many prompts"), ("digits:x", "write how many prompts"), ("/no/such", "no prompts can be")],
)
def test_prompts_that_are_none(given_: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        collecting.read_prompts(given_, 0)


def test_prompts_of_the_digits_world_have_so_many_digits_in_turn() -> None:
    given = list(collecting.read_prompts("digits:6", 7, [2, 2, 1]))
    assert [prompt.count(" moves ") for prompt, _ in given] == [2, 2, 1, 2, 2, 1]
    assert [seed for _, seed in given] == list(range(7, 13))
    assert [prompt.count(" moves ") for prompt, _ in collecting.read_prompts("digits:40", 7)].count(1) in range(10, 31)


def test_a_long_file_is_streamed_and_an_empty_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n \n")
    with pytest.raises(UserError, match="has no prompt in it"):
        collecting.read_prompts(str(file), 0)
    file.write_text("".join(f"prompt {number % 60_000}\n" for number in range(100_000)))
    prompts = collecting.read_prompts(str(file), 7)
    assert prompts.count == 60_000
    (text, seed), *_ = iter(prompts)
    assert text == "prompt 0"
    assert seed >= 7
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="no prompts can be read"):
        collecting.read_prompts(str(file), 0)


CROPS = [
    Crop(f"{number:x}", [pair(100 + number)], [pair(10 * number), pair(10 * number + 1)], {"compared": []})
    for number in range(1, 4)
]


def stored(out: Path) -> list[int]:
    return sorted(clip.id for clip in rows(out, "pairs"))


@given(killed_after=st.lists(st.integers(0, 5), max_size=4))
def test_killed_anywhere_no_search_counts_twice_or_half(
    tmp_path_factory: pytest.TempPathFactory, killed_after: Sequence[int]
) -> None:
    """What is conserved: every row of a finished search is there once, whatever a killed writer had begun."""
    out = tmp_path_factory.mktemp("killed")
    for calls in killed_after:
        with harvesting(out, "v", "m", {"by": 1}):
            pass
        harvest, left = Harvest(out, "v", "m"), calls
        for crop in CROPS:
            for clip in crop.pairs:  # a writer that is killed between rows, and before the search is in the list
                if left and crop.key not in harvest.done and clip.id not in {c.id for c in rows(out, "pairs")}:
                    harvest.writers["pairs"].add(clip)
                    left -= 1
            if left:
                harvest = _again(harvest, out, crop)
    with harvesting(out, "v", "m", {"by": 1}) as harvest:
        for crop in CROPS:
            if crop.key not in harvest.done:
                harvest.add(crop)
    assert stored(out) == sorted(clip.id for crop in CROPS for clip in crop.pairs)
    assert set(harvest.done) == {crop.key for crop in CROPS}
    catalog = open_catalog([out / "pairs"])
    assert len(ClipReader(catalog, 0).read(range(len(catalog)))) == 6


def _again(harvest: Harvest, out: Path, crop: Crop) -> Harvest:
    """The next process, which finds what the last one left and does the whole search."""
    for writer in harvest.writers.values():
        writer.__exit__(KeyboardInterrupt, None, None)
    harvest = Harvest(out, "v", "m")
    if crop.key not in harvest.done:
        harvest.add(crop)
    return harvest


def node(path: tuple[int, ...], fate: Fate = Fate.KEPT, **scores: float) -> Node:
    asked = tuple((Assessment(name), (("v", score),)) for name, score in scores.items())
    return Node(path, fate, None, asked, tuple(scores.values()), (), None, None)


def test_siblings_are_compared_by_what_all_of_them_were_asked_last() -> None:
    nodes = [
        node((0,), image=0.9),
        node((1,), Fate.DROPPED, image=0.2),
        node((2,), image=0.85),
        node((0, 0), potential=0.1, motion=0.5, final=0.3),
        node((0, 1), potential=0.9, motion=0.6),
        node((2, 0), motion=0.5),  # an only child
        node((0, 0, 0), potential=0.4),
        node((0, 0, 1), potential=0.8),  # previews alone
    ]
    paths = {each.path for each in nodes}
    found = preferences.comparisons(nodes, product, paths)
    assert [(each.better, each.worse, each.cut) for each in found] == [
        ((0,), (2,), False),
        ((0,), (1,), True),
        ((0, 1), (0, 0), False),
    ]
    assert found[1].chances == pytest.approx((0.9, 0.2))
    assert [each.worse for each in preferences.told_apart(found, margin=1.0, least=0.5)] == [(1,)]
    assert [each.worse for each in preferences.told_apart(found, margin=0.1, least=0.5)] == [(2,), (1,), (0, 0)]
    assert [each.worse for each in preferences.told_apart(found, margin=0.1, least=0.5, most=0.5)] == [(1,), (0, 0)]
    assert preferences.comparisons(nodes, product, paths - {(0,), (0, 0)})[0].better == (2,)
