"""How a training run is watched: where its figures go, and which samples it shows. No torch in here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from framegrove.config.base import Config


class TrackingConfig(Config):
    """Where the figures and pictures of a run go, besides its folder."""

    to: Literal["tensorboard", "wandb", "mlflow", "none"] = Field(
        "tensorboard",
        description="tensorboard: OUT/tensorboard; wandb: Weights & Biases; mlflow: the server at MLFLOW_TRACKING_URI",
    )
    project: str = Field("framegrove", min_length=1, description="of wandb: the project; of mlflow: the experiment")
    name: str | None = Field(None, description="of wandb and mlflow: the run's name; null: that of its folder")


class SamplesConfig(Config):
    """Videos of the same prompts and seeds, sampled again and again with the averaged weights."""

    prompts: tuple[str, ...] = Field((), description="what the samples should show, one video each; empty: no samples")
    every: PositiveInt | None = Field(None, description="steps between them; null: at every checkpoint")
    units: PositiveInt | None = Field(
        None, description="units of each video, at most those of the phase; null: as many as the phase trains"
    )
    seed: NonNegativeInt = Field(0, description="of the first video; the next ones have the numbers that follow")
    scorer: str | None = Field(
        None, description="a function as module:function that scores a video: (prompt, frames) -> number"
    )
