"""What the two kinds of studies need of a cluster, and what they leave: search.py and pyramid.py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from framegrove.config.pool import PoolSize
from framegrove.config.study import Params, StudyConfig
from framegrove.words import counted
from jobs.studies import pyramid, search
from jobs.studies.notes import Begun, folder_of, measured
from jobs.studies.pyramid import PyramidStudy
from jobs.studies.search import SearchStudy
from jobs.studies.tuning import Objective, room_for

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster
    from framegrove.config.model import ModelSource
    from framegrove.config.verifier import PanelConfig
    from framegrove.evaluation.study_page import Picture
    from framegrove.evaluation.study_results import Trial
    from jobs.console import Display


@dataclass(frozen=True)
class Room:
    """What a cluster has for a study: how many trials at once, and what else their processes are given."""

    at_once: int
    given: tuple[Any, ...]


class Kind(Protocol):
    """A kind of study, checked: everything that can be wrong with it before a trial has been said."""

    use: str  # what is done with a winner, as a command

    @property
    def config(self) -> StudyConfig: ...

    @property
    def objective(self) -> Objective:
        """What a trial's process calls."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What decides a trial's outcome besides its parameters, as JSON values."""
        ...

    def applies(self, name: str, given: Params) -> bool:
        """Whether a parameter changes anything beside these others."""
        ...

    def room(self, out: Path, cluster: Cluster, display: Display) -> contextlib.AbstractContextManager[Room]:
        """Take what there is room for, and say what is started. Raises NoRoom, at once where there can be none."""
        ...

    def read(self, out: Path, begun: Begun) -> Trial:
        """A trial that has ended."""
        ...

    def winner(self, trial: Trial) -> dict[str, Any]:
        """The configuration of a trial, for the command in ``use``."""
        ...

    def pictures(self, trials: Sequence[Trial], out: Path) -> list[Picture]:
        """Draw what only this kind has to show."""
        ...

    def costs(self, trials: int) -> str:
        """What so many trials may cost, in a sentence."""
        ...


class Searches:
    """The kind ``search``."""

    use = search.USE

    def __init__(
        self,
        config: StudyConfig,
        source: ModelSource,
        panel: PanelConfig,
        generators: int | None,
        places: Mapping[str, Any],
    ) -> None:
        from actors.model_files import ModelFiles

        self._files = ModelFiles.read(source)
        self._panel, self._generators = panel, generators
        self.study = SearchStudy.of(config, source, panel, {key: each for key, each in places.items() if each})

    @property
    def config(self) -> StudyConfig:
        return self.study.config

    @property
    def objective(self) -> Objective:
        return search.objective

    def facts(self) -> Mapping[str, Any]:
        from framegrove.verification.identity import verifier_identity

        verifiers = {each.name: verifier_identity(each) for each in self._panel.verifiers}
        return _common(self.config) | {"model": self._files.fingerprint(), "verifiers": verifiers}

    def applies(self, name: str, given: Params) -> bool:
        return self.study.applies(name, given)

    @contextlib.contextmanager
    def room(self, out: Path, cluster: Cluster, display: Display) -> Iterator[Room]:
        from framegrove.cluster.placement import Role, bundle, machines
        from jobs.studies.pool import pool_of

        judging, count = self.study.judging, self._generators
        verifiers = sum(each.actors.most for each in self._panel.verifiers) if judging else 0
        if count is None:
            free = room_for([bundle(Role.GENERATE)], machines()) - verifiers
            count = max(1, min(free, os.cpu_count() or 1) if cluster.own else free)
        size = PoolSize(count, count)
        judges = [counted(verifiers, "verifier")] if judging else []
        display.begin(f"starting {' and '.join([counted(count, 'generator'), *judges])}, which all trials share")
        with pool_of(out, self.facts(), self._files.source, self._panel, size, cluster, judging=judging) as pool:
            yield Room(count, (self.study, pool, out))

    def read(self, out: Path, begun: Begun) -> Trial:
        return measured(begun, folder_of(out, begun.number), {})

    def winner(self, trial: Trial) -> dict[str, Any]:
        return self.study.winner(trial)

    def pictures(self, trials: Sequence[Trial], out: Path) -> list[Picture]:
        return []

    def costs(self, trials: int) -> str:
        one = self._files.costs(self.study.request(0, self.study.wanted({})).request).unsearched(self.study.size[0])
        each, units = len(self.study.prompts), counted(self.study.size[0], "unit")
        return (
            f"{counted(trials, 'trial')} of {counted(each, 'video')}: {counted(trials * each, 'video')} of {units}; a "
            f"sample of one costs {one.all_flops:.3g} FLOPs, and a search at most the cap times as much"
        )


class Trainings:
    """The kind ``pyramid``."""

    use = pyramid.USE

    def __init__(self, config: StudyConfig, file: Path, workers: int) -> None:
        self.study = PyramidStudy.of(config, file)
        self._workers = workers

    @property
    def config(self) -> StudyConfig:
        return self.study.config

    @property
    def objective(self) -> Objective:
        return pyramid.objective

    def facts(self) -> Mapping[str, Any]:
        return _common(self.config) | {"training": self.study.base.model_dump(mode="json")}

    def applies(self, name: str, given: Params) -> bool:
        return self.study.applies(name, given)

    @contextlib.contextmanager
    def room(self, out: Path, cluster: Cluster, display: Display) -> Iterator[Room]:
        from framegrove.cluster.placement import Role, bundle, has_gpus, machines, require

        worker = bundle(Role.TRAIN, num_gpus=int(has_gpus()))
        needed = [worker] * self._workers
        require(cluster, needed, purpose=f"training with {counted(self._workers, 'worker')}")
        at_once = max(1, room_for(needed, machines()))
        if cluster.own:  # whose CPUs are more than the machine has
            at_once = max(1, min(at_once, (os.cpu_count() or 1) // self._workers))
        yield Room(at_once, (self.study, self._workers, out))

    def read(self, out: Path, begun: Begun) -> Trial:
        folder = folder_of(out, begun.number)
        return measured(begun, folder, pyramid.training_of(folder))

    def winner(self, trial: Trial) -> dict[str, Any]:
        return self.study.winner(trial)

    def pictures(self, trials: Sequence[Trial], out: Path) -> list[Picture]:
        from framegrove.evaluation.study_page import Picture

        drawn = pyramid.draw(self.study, trials, out)
        texts = [
            ("Learning", "How right samples were on the way, by the oracle, after how many FLOPs of training."),
            ("Samples on the way", "The same prompts and seeds, from the first samples at the top to the last."),
        ]
        return [Picture(path, *text) for path, text in zip(drawn, texts, strict=False)]

    def costs(self, trials: int) -> str:
        prompts = counted(len(self.study.prompts), "video")
        flops = sum(self.study.flops)
        return f"{counted(trials, 'trial')}, each of {flops:.3g} FLOPs of training and {prompts} without a search"


def _common(config: StudyConfig) -> dict[str, Any]:
    """A study's own facts; how many trials it has may change."""
    return config.model_dump(mode="json", exclude={"trials"})
