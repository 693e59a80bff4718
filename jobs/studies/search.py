"""The study of searches: what is varied about how a video is searched for, and what a trial measures of that.

A trial searches for every prompt in its way, on the pool that all trials share; the same prompts and seeds in every
one, so that differences are paired.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framegrove.config.base import validated
from framegrove.config.generate import GenerateConfig
from framegrove.config.search import SearchConfig
from framegrove.config.study import NAMED, Params, StudyConfig, blaming
from framegrove.errors import UserError
from framegrove.search import policies
from jobs.studies.notes import folder_of, rows_of
from jobs.studies.pool import Wanted
from jobs.studies.tuning import Interrupted

if TYPE_CHECKING:
    from framegrove.config.model import ModelSource
    from framegrove.config.verifier import PanelConfig
    from framegrove.evaluation.study_results import Trial

USE = 'python -m jobs.generate --config FILE --prompt ".." --out ..'


@dataclass(frozen=True)
class SearchStudy:
    """A study of searches with one model: ``base`` is how is searched where a trial does not say otherwise.

    ``size`` is (units, height, width) of a video, ``places`` what winners say of the model and the verifiers, of which
    there are ``judges``.
    """

    config: StudyConfig
    base: SearchConfig
    prompts: tuple[str, ...]
    size: tuple[int, int, int]
    places: Mapping[str, Any]
    judges: int

    @classmethod
    def of(cls, config: StudyConfig, source: ModelSource, panel: PanelConfig, places: Mapping[str, Any]) -> SearchStudy:
        """Check everything that can be checked before a trial. Raises UserError, in one sentence."""
        from actors.model_files import ModelFiles
        from jobs.studies.pool import prompts_of

        prompts = prompts_of(config.prompts, config.seed)
        recipe = ModelFiles.read(source).recipe
        size = (config.units or recipe.units, recipe.height, recipe.width)
        base: dict[str, Any] = {"speculate": "off"}  # what is sampled ahead to save time would be counted as wasted
        for key, value in config.settings.items():
            _set(base, "budget" if key == "cap" else key, value)
        study = cls(config, validated(SearchConfig, base, "settings"), prompts, size, places, len(panel.verifiers))
        study._check(source, panel)
        return study

    @property
    def judging(self) -> bool:
        """Whether any trial asks verifiers."""
        return any(policies.find(name).judged for name in self._policies)

    @property
    def _policies(self) -> tuple[str, ...]:
        given = self.config.space.get("policy")
        return given.examples if given is not None else (self.base.policy,)

    def applies(self, name: str, given: Params) -> bool:
        """Whether a parameter changes anything about a search with these others."""
        entry = policies.find(given.get("policy", self.base.policy))
        if name == "panel" and self.judges < 2:
            return False
        if name == "until":
            return entry.stops
        if name.startswith("options."):
            return name.split(".")[1] == entry.name
        return entry.judged or name in ("policy", "guidance", "steps")

    def wanted(self, params: Params) -> GenerateConfig:
        """How a trial with these parameters searches. Raises UserError for what cannot be."""
        data = copy.deepcopy(self.base.model_dump(exclude_unset=True))
        for name, value in params.items():
            if name == "cap":
                data["budget"] = f"{value:g}x"
            elif value is not None or name not in NAMED["search"]:
                _set(data, name, value)
        if params.get("cap", 2) == 1:
            data["policy"], data["until"] = "single", None  # there is nothing to search with
        found = validated(GenerateConfig, data)
        entry = policies.find(found.policy)
        policies.options_of(found, entry)
        policies.check_until(entry, found.until)
        return found

    def request(self, number: int, wanted: GenerateConfig) -> Wanted:
        """The video of a prompt."""
        from framegrove.types import GenerationRequest, Sampling

        units, height, width = self.size
        panel = dict.fromkeys(wanted.panel, 1.0) if wanted.panel is not None else None
        search = SearchConfig.model_validate({name: getattr(wanted, name) for name in SearchConfig.model_fields})
        request = GenerationRequest(
            self.prompts[number],
            self.config.seed + number,
            units,
            height,
            width,
            policy=wanted.policy,
            budget=wanted.multiple if policies.find(wanted.policy).judged else 1.0,
            sampling=Sampling(steps=wanted.steps, guidance=wanted.guidance),
            verifiers=panel,
        )
        return Wanted(number, request, search)

    def winner(self, trial: Trial) -> dict[str, Any]:
        """What jobs.generate takes as --config to search as a trial did."""
        wanted = self.wanted(trial.params)
        found = wanted.model_dump(mode="json", exclude_unset=True)
        return {"policy": wanted.policy, "budget": wanted.budget, **found, "units": self.size[0], **self.places}

    def _check(self, source: ModelSource, panel: PanelConfig) -> None:
        """What all trials share, then every value of every parameter, one at a time. Raises UserError."""
        from actors.model_files import ModelFiles

        files, names = ModelFiles.read(source), [each.name for each in panel.verifiers]
        try:
            shared = self.wanted({})
        except (UserError, TypeError, ValueError) as error:  # a policy's module may raise what it likes
            raise UserError(f"settings: {' '.join(str(error).split())}") from None
        files.check(self.request(0, shared).request)
        for name in self.config.names:  # the policies first, on which others depend
            for value in self.config.space[name].examples:
                alone = self._alone(name, value)
                with blaming(name, value):
                    found = self.wanted(alone)
                    files.check(self.request(0, found).request)
                    unknown = [each for each in found.panel or () if each not in names]
                    if unknown:
                        raise UserError(f"there is no verifier {unknown[0]!r}: choose among {', '.join(names)}")

    def _alone(self, name: str, value: Any) -> dict[str, Any]:
        """A parameter's value with a policy for which it counts."""
        if name == "policy":
            return {name: value}
        for policy in self._policies:
            if self.applies(name, {"policy": policy}):
                return {"policy": policy, name: value}
        if name == "panel":
            return {name: value}
        raise UserError(f"space.{name}: none of the study's policies takes it, so remove it, or add one that does")


def objective(number: int, params: Params, given: tuple[Any, ...], report: Callable[[Mapping[str, Any]], None]) -> None:
    """What a trial's process does: have every video made that has no row yet."""
    import ray
    from ray.exceptions import RayActorError

    study, pool, out = given
    rows = rows_of(folder_of(out, number))
    wanted = study.wanted(params)
    for at in range(len(study.prompts)):
        if not rows.has(at, ""):
            try:
                rows.add(ray.get(pool.video.remote(study.request(at, wanted))))
            except RayActorError as error:
                lost = f"the study's generators and verifiers were lost ({type(error).__name__})"
                raise Interrupted(lost) from None
            report({"videos": at + 1, "share": (at + 1) / len(study.prompts)})


def _set(data: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted key. Raises UserError below a single value."""
    *parents, last = name.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"{name[:60]}: {parent} holds a single value, there is nothing below it")
    data[last] = value
