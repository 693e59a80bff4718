"""Trackers: TensorBoard, Weights & Biases, MLflow. Worker 0 alone has one.

A run that goes on writes into the same log. Steps that are run again replace the earlier ones where the tracker can do
that: TensorBoard hides them, in the others both stand.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from framegrove.config.watch import TrackingConfig
from framegrove.errors import UserError
from framegrove.files import write_json
from framegrove.media.frames import Frames

TENSORBOARD = "tensorboard"
_IDS = "tracking.json"  # of the run at a server


class Tracker(Protocol):
    """Where the figures and pictures of one run go."""

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after so many steps, by name, as in "train/loss"."""
        ...

    def picture(self, step: int, name: str, picture: Frames) -> None:
        """A picture, uint8 (H, W, 3)."""
        ...

    def close(self) -> None:
        """Have everything written."""
        ...


def check(config: TrackingConfig) -> None:
    """Raise UserError where the package of a tracker is missing."""
    if config.to in _EXTRAS and importlib.util.find_spec(config.to) is None:
        raise UserError(
            f"tracking.to is {config.to}, but the package {config.to} is not installed: install it with "
            f"pip install 'framegrove[{config.to}]', or choose tensorboard or none"
        )


def open_tracker(config: TrackingConfig, out: Path, step: int, about: Mapping[str, Any]) -> Tracker | None:
    """The tracker of the run in ``out``, which goes on after ``step`` steps; ``about`` is its configuration."""
    name = config.name or out.absolute().name
    match config.to:
        case "tensorboard":
            return TensorBoard(out / TENSORBOARD, step)
        case "wandb":
            return WeightsAndBiases(config.project, name, out, about)
        case "mlflow":
            return MLflow(config.project, name, out, about)
        case "none":
            return None


class TensorBoard:
    """TensorBoard's files in a folder."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # for who looks on

    def picture(self, step: int, name: str, picture: Frames) -> None:
        """See Tracker."""
        self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases. Figures have steps of their own: the service takes none that lies before the last."""

    def __init__(self, project: str, name: str, out: Path, about: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        identity = _known_id(out, "wandb")
        self._run = self._wandb.init(
            project=project, name=name, id=identity, resume="allow", dir=str(out), config=dict(about)
        )
        _keep_id(out, "wandb", self._run.id)
        self._run.define_metric("*", step_metric="step")

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log({**values, "step": step})

    def picture(self, step: int, name: str, picture: Frames) -> None:
        """See Tracker."""
        self._run.log({name: self._wandb.Image(picture), "step": step})

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()


class MLflow:
    """A run at an MLflow server, or in a folder, as MLFLOW_TRACKING_URI says."""

    def __init__(self, experiment: str, name: str, out: Path, about: Mapping[str, Any]) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(experiment)
        identity = _known_id(out, "mlflow")
        run = self._mlflow.start_run(run_id=identity, run_name=None if identity else name)
        if identity is None:
            _keep_id(out, "mlflow", run.info.run_id)
            self._mlflow.log_dict(dict(about), "configuration.json")

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._mlflow.log_metrics(dict(values), step=step)

    def picture(self, step: int, name: str, picture: Frames) -> None:
        """See Tracker."""
        self._mlflow.log_image(picture, key=name.replace("/", "-"), step=step)

    def close(self) -> None:
        """See Tracker."""
        self._mlflow.end_run()


# Trackers whose package is an extra of this one.
_EXTRAS = ("wandb", "mlflow")


def _known_id(out: Path, tracker: str) -> str | None:
    path = out / _IDS
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known.get(tracker)


def _keep_id(out: Path, tracker: str, identity: str) -> None:
    path = out / _IDS
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, {**known, tracker: identity})
