"""A suite of searches for jobs.evaluate: many settings on the same prompts, over a cache, for as long as it takes.

Every row is on the disk when it is made, and everything that was sampled or judged is in the cache; so a suite can be
stopped at any time, and resumes where it was. Rows of searches that the oracle judges, a ceiling, are in files of their
own. What there is is examined at the end of each run, over the prompts that are complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.config.base import load
from framegrove.config.suite import Length, Setting, SuiteConfig
from framegrove.errors import UserError
from framegrove.search import policies
from framegrove.words import counted
from jobs.evaluations import measuring
from jobs.evaluations.laboratory import ORACLE, PANEL
from jobs.evaluations.prompts import digits_prompts

if TYPE_CHECKING:
    from actors.model_files import Card
    from framegrove.config.search import SearchConfig
    from framegrove.config.verifier import PanelConfig
    from framegrove.evaluation.blame import Blame
    from framegrove.evaluation.evidence import Chapter
    from framegrove.evaluation.ledger import Ledger
    from framegrove.evaluation.results import Row, Sample
    from jobs.console import Display
    from jobs.evaluations.laboratory import Laboratory

FOLDER = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Suite:
    """A suite as it is run: what is called ``name``, without settings of policies that there are not.

    ``seed`` is that of its prompts, ``tuning`` whether these are those for tuning.
    """

    name: str
    config: SuiteConfig
    settings: tuple[Setting, ...]
    left_out: tuple[Setting, ...]
    seed: int
    tuning: bool

    @property
    def lengths(self) -> tuple[Length, ...]:
        return self.config.lengths

    def judged_by(self, judge: str) -> tuple[Setting, ...]:
        """The settings that are run with this judge."""
        chosen = self.config.ceiling if judge == ORACLE else None
        return tuple(each for each in self.settings if chosen is None or each.label in chosen)


def read_suite(
    name: str, search: SearchConfig, panel: PanelConfig, *, tuning: bool = False, prompts: int | None = None
) -> Suite:
    """A shipped suite by its name, or one by the path of its YAML file; of at most ``prompts`` prompts.

    ``search`` is how is searched where a setting does not say otherwise, and ``panel`` who there is to judge. Raises
    UserError for what cannot be run.
    """
    path = FOLDER / f"suite_{name.replace('-', '_')}.yaml"
    if not path.is_file():
        path = Path(name)
        if not path.is_file():
            known = ", ".join(sorted(each.stem[6:].replace("_", "-") for each in FOLDER.glob("suite_*.yaml")))
            raise UserError(f"there is no suite {name[:60]!r}: give one of {known}, or the path of a YAML file")
    config = load(SuiteConfig, path)
    if prompts is not None:
        lengths = tuple(each.model_copy(update={"prompts": min(prompts, each.prompts)}) for each in config.lengths)
        config = config.model_copy(update={"lengths": lengths})
    known_policies = policies.summaries()
    left_out = tuple(s for s in config.settings if s.policy in config.optional and s.policy not in known_policies)
    settings = tuple(s for s in config.settings if s not in left_out)
    there = [verifier.name for verifier in panel.verifiers]
    for setting in settings:
        measuring.search_of(search, setting)
        missing = sorted(set(setting.panel or ()) - set(there))
        if missing:
            raise UserError(
                f"setting {setting} is judged by {missing[0]}, and the panel has {', '.join(there)}: give a panel that "
                "has all of them as --verifier"
            )
    own = path.stem.removeprefix("suite_").replace("_", "-")
    return Suite(own, config, settings, left_out, config.tuning_seed if tuning else config.seed, tuning)


def run(suite: Suite, lab: Laboratory, files: Card, out: Path, judge: str, display: Display) -> None:
    """Make what is missing of a suite, and write what all of it shows to ``out``."""
    from framegrove.digits.oracle import oracle_fingerprint

    for setting in suite.left_out:
        display.say(f"{setting} is left out: there is no policy {setting.policy}")
    oracle = oracle_fingerprint()
    wanted: list[tuple[measuring.Item, Ledger[Sample]]] = []
    for length in suite.lengths:
        which = {
            "prompts": [suite.seed, suite.config.digits],
            "units": length.units,
            "speculate": lab.search.speculate,  # nothing to the videos, much to what they cost
            "oracle": oracle,
        }
        ledger = measuring.open_ledger(lab, _ledger(out, judge, length), which)
        prompts = digits_prompts(length.prompts, suite.seed, suite.config.digits)
        items = measuring.items(files.native, suite.judged_by(judge), prompts, suite.seed, units=length.units)
        wanted += [(item, ledger) for item in items]
    wanted.sort(key=lambda each: each[0].index)  # a setting that some length cannot pay for shows at the first prompt
    measuring.measure(lab, wanted, display)


def report(suite: Suite, out: Path, display: Display) -> None:
    """Examine the rows in ``out``: evidence.json, evidence.md, rows.parquet, and pictures of every length."""
    from framegrove.evaluation import evidence
    from framegrove.evaluation.blame import blame
    from framegrove.evaluation.evidence_page import page
    from framegrove.evaluation.results import write_parquet
    from framegrove.files import replacing, write_json

    display.begin("reading the results")
    chapters: list[tuple[Chapter, Chapter | None, Blame | None]] = []
    everything: list[tuple[str, Row]] = []
    for length in suite.lengths:
        found = {judge: _rows(suite, out, judge, length, display) for judge in (PANEL, ORACLE)}
        everything += [(judge, row) for judge, rows in found.items() for row in rows]
        by_panel, by_oracle = (
            evidence.chapter(rows, suite.config) if evidence.complete(rows) else None
            for rows in (found[PANEL], found[ORACLE])
        )
        if by_panel is not None:
            chapters.append((by_panel, by_oracle, blame(found[PANEL], found[ORACLE], by_panel, suite.config)))
            _draw(by_panel, suite, out, PANEL)
        if by_oracle is not None:
            _draw(by_oracle, suite, out, ORACLE)
    if everything:
        write_parquet([row for _, row in everything], out / "rows.parquet", [judge for judge, _ in everything])
    if not chapters:
        display.say(
            "no prompt has been measured in every setting with the panel as judge: there is nothing to show yet"
        )
        return
    title = f"{suite.name}{', on the prompts for tuning' if suite.tuning else ''}"
    with replacing(out / "evidence.md") as partial:
        partial.write_text(page(title, suite.config.aims.units, chapters), encoding="utf-8")
    write_json(out / "evidence.json", {"suite": suite.config.model_dump(mode="json"), "lengths": _json(chapters)})
    display.say("\n".join(str(path) for path in sorted(out.glob("evidence.*")) + sorted(out.glob("*.png"))))


def _rows(suite: Suite, out: Path, judge: str, length: Length, display: Display) -> list[Row]:
    """The rows of this suite that are there; those of the oracle's only if they are of the same model and prompts."""
    from framegrove.evaluation.results import Row, read_ledger

    path = _ledger(out, judge, length)
    if not path.is_file():
        return []
    identity, rows = read_ledger(path)
    other = _ledger(out, PANEL, length)
    if judge == ORACLE and other.is_file():
        of_panel, _ = read_ledger(other)
        differing = [key for key in ("model", "prompts", "oracle", "search") if identity.get(key) != of_panel.get(key)]
        if differing:
            display.say(f"{path} is left out: it is of another {differing[0]} than {other}")
            return []
    order = {setting: place for place, setting in enumerate(suite.judged_by(judge))}
    mine = [row for row in rows if isinstance(row, Row) and row.setting in order and row.prompt_index < length.prompts]
    return sorted(mine, key=lambda row: (row.prompt_index, order[row.setting]))


def _ledger(out: Path, judge: str, length: Length) -> Path:
    return out / f"{judge}-{length.units}.jsonl"


def _draw(found: Chapter, suite: Suite, out: Path, judge: str) -> None:
    from framegrove.evaluation.evidence_pictures import draw_costs, draw_scores

    about = f"{counted(found.units, 'unit')}, {counted(found.prompts, 'prompt')}"
    if judge == ORACLE:
        title = f"Ceiling, the oracle as judge: videos fully right, {about}"
        draw_costs(found, suite.config, out / f"ceiling-{found.units}.png", title=title)
        return
    draw_costs(found, suite.config, out / f"right-{found.units}.png", title=f"Videos fully right, {about}")
    title = f"What the judge says and what the oracle says, {about}"
    draw_scores(found, suite.config, out / f"judge-{found.units}.png", title=title)


def _json(chapters: Sequence[tuple[Chapter, Chapter | None, Blame | None]]) -> list[Mapping[str, Any]]:
    names = ("found", "ceiling", "blame")
    return [
        {name: _plain(asdict(each)) if each is not None else None for name, each in zip(names, three, strict=True)}
        for three in chapters
    ]


def _plain(value: Any) -> Any:
    """A value of nested sections with settings as JSON has them."""
    if isinstance(value, Setting):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
