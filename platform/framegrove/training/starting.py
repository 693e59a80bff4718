"""Starting from another run: from its newest checkpoint, which may be well ahead of the model in its folder."""

from __future__ import annotations

from pathlib import Path

from framegrove.config.train import CHECKPOINTS, START, TrainConfig
from framegrove.training import checkpoint
from framegrove.training.export import export


def from_newest(config: TrainConfig, out: Path) -> tuple[TrainConfig, int | None]:
    """The configuration of the run in ``out``, made to start from ``out/start`` where its start is another run.

    That is the model of the other run's newest checkpoint at the time when this one begins; the number of steps is that
    checkpoint's, None where nothing was exported. A run that has begun keeps the start that it has, wherever the other
    one has gone since. Raises UserError where the checkpoint cannot be used.
    """
    model, own = config.model, (out / START).absolute()
    if model.start is None or own == Path(model.start).absolute():
        return config, None
    given = Path(model.start)
    of_run, begun = (given / CHECKPOINTS).is_dir(), checkpoint.newest(out / CHECKPOINTS) is not None
    step = None
    if begun:
        if not own.is_dir() or (given.exists() and not of_run):
            return config, None
    elif not of_run or checkpoint.newest(given / CHECKPOINTS) is None:
        return config, None
    else:
        step = export(given, own)
    return config.model_copy(update={"model": model.model_copy(update={"start": str(own)})}), step
