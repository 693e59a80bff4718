"""Configuration of what a run trains of an existing model: all of it, an adapter, or named parts. No torch in here."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from framegrove.config.base import Config

TEXT = "text."  # what the names of the text encoder's parameters begin with


class LoraConfig(Config):
    """A low-rank adapter beside linear layers of the transformer, whose own weights stay as they are."""

    rank: PositiveInt = Field(16, description="inner width of the adapter: more can learn more")
    alpha: PositiveFloat = Field(16.0, description="what the adapter adds is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs that is dropped in training")
    targets: tuple[str, ...] = Field(
        ("*.attn.*",),
        min_length=1,
        description="glob patterns of the names of the transformer's linear layers that get one",
    )


class TuneConfig(Config):
    """What is trained of the model that a run starts from; without a key all of it."""

    lora: LoraConfig | None = Field(None, description="an adapter (see below; {} for its defaults); null: none")
    parts: tuple[str, ...] = Field(
        (),
        description="glob patterns of the only parameters to train, as transformer.*.attn.* or text.*; empty: all",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.lora is not None and self.parts:
            raise ValueError("give lora or parts, not both: an adapter leaves all weights of the model as they are")
        return self

    @property
    def all(self) -> bool:
        """Whether the whole model is trained."""
        return self.lora is None and not self.parts

    @property
    def trains_text(self) -> bool:
        """Whether any of ``parts`` is of the text encoder; where none is, patterns like *.weight leave it out, too."""
        return any(pattern.startswith(TEXT) for pattern in self.parts)
