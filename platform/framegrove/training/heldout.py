"""The loss on held-out clips: on the same samples every time, so that it changes with the weights alone.

Clips, units, stages, timesteps and noises are drawn once for each phase, as that phase draws them, from a seed that all
runs have in common; prompts are not dropped. Any number of workers shares the same samples. The weights are the
averaged ones: the model folder has them, and the best checkpoint should be the one whose model is the best.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.ingest import Catalog, DataError, open_heldout
from framegrove.training.curriculum import PhaseClips, Position
from framegrove.training.curve import LossTally
from framegrove.training.feed import Feed
from framegrove.training.loop import Engine

_log = logging.getLogger(__name__)

SEED = 2**40  # not one that a user is likely to give a run


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A run's held-out clips, and those of each phase; None for a phase that finds none of its sizes and lengths."""

    catalog: Catalog
    clips: tuple[PhaseClips | None, ...]

    @classmethod
    def of(cls, config: TrainConfig) -> HeldOut | None:
        """Those of a run's data, None where there are none. Raises DataError for a damaged file."""
        catalog = open_heldout([given.path for given in config.data_sets])
        if catalog is None:
            return None
        return cls(catalog, tuple(_clips(phase, catalog, config) for phase in config.phases))


def _clips(phase: PhaseConfig, catalog: Catalog, config: TrainConfig) -> PhaseClips | None:
    weights = [given.weight for given in config.data_sets]
    try:
        return PhaseClips.of(phase, catalog, weights, "the held-out split")
    except DataError as error:
        _log.warning("phase %s has no held-out loss: %s", phase.name, error)
        return None


def position(config: TrainConfig, phase_index: int) -> Position:
    """What stands in for a step of a phase: all its held-out samples are one batch."""
    phase = config.phases[phase_index]
    objective = phase.objective.model_copy(update={"text_dropout": 0.0})
    held = {"batch": config.validate_on, "batch_tokens": None, "objective": objective}
    return Position(phase_index, phase.model_copy(update=held), 0)


def measure(engine: Engine, feed: Feed, phase_index: int, stages: int, units: int) -> dict[str, float]:
    """Mean held-out losses of a phase, by the names of the loss curve; all workers call this together.

    ``feed`` has a worker's share of the held-out samples of each phase.
    """
    share = feed.at(phase_index)
    tally = LossTally(stages, units)
    for members, losses in zip(share.packs, engine.losses(share.packs), strict=True):
        tally.add(members, losses.float())
    return tally.means(engine.total(tally.sums))
