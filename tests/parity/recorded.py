"""A folder of tensors recorded from the authors' implementation (--golden DIR), as its manifest describes it.

Nothing here or in the tests knows the configurations of one set: stages, shift, gamma, frames per unit, heads, layers,
channels and batch sizes are the manifest's. Parts that a folder leaves out have no cases.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from framegrove.config.model import FluxConfig, TransformerConfig
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.packed import TextEmbedding
from framegrove.models.transformers import Transformer, build_transformer

TRANSFORMERS: dict[str, type[TransformerConfig] | type[FluxConfig]] = {"mmdit": TransformerConfig, "flux": FluxConfig}
WORST: dict[str, tuple[float, float, str]] = {}  # by kind: off by, share of what is allowed, where


@dataclass(frozen=True)
class Limits:
    """Tolerance of a kind of tensor; the worst that was seen of each kind is told when the tests are done."""

    kind: str
    atol: float
    rtol: float

    def check(self, actual: Tensor, expected: Tensor, what: str) -> None:
        """Fail where a tensor is further off than allowed."""
        assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)}, recorded {tuple(expected.shape)}"
        off = (actual.detach().double() - expected.double()).abs()
        note(self.kind, float(off.max()), float((off / (self.atol + self.rtol * expected.double().abs())).max()), what)


def note(kind: str, off: float, share: float, what: str) -> None:
    """Remember the worst of a kind, ``share`` being its part of what is allowed; fail where that is above 1."""
    if share >= WORST.get(kind, (0.0, 0.0, ""))[1]:
        WORST[kind] = (off, share, what)
    assert share <= 1, f"{what} is off by {off:.2e}, {share:.1f} times what is allowed"


class Golden:
    """A recorded set."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.cfg: dict[str, Any] = manifest["cfg"]
        self.tolerance: dict[str, Any] = manifest["recommended_tolerances"]

    def cases(self, part: str) -> dict[str, Any]:
        """The recorded cases of a part of the set, none where it is left out."""
        cases: dict[str, Any] = self.cfg.get(part, {}).get("cases", {})
        return cases

    @functools.cache  # noqa: B019 - a test session has one set
    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one file."""
        return load_file(self.folder / f"{name}.safetensors")

    def limits(self, name: str) -> Limits:
        """How far a kind of tensor may be off."""
        return Limits(name, **{key: self.tolerance[name][key] for key in ("atol", "rtol")})

    def transformer(self, part: str, case: dict[str, Any] | None = None, weights: str | None = None) -> Transformer:
        """The recorded transformer, "mmdit" or "flux", changed as a case asks for it."""
        case = case or {}
        config = TRANSFORMERS[part].from_public(self.cfg[part]["config"])
        if case.get("noncausal"):
            config = config.model_copy(update={"use_temporal_causal": False})
        model = build_transformer(config)
        model.load_state_dict(self.tensors(weights or f"{part}_weights"))
        scale_parameters(model, case)
        return model.eval()


def golden_of(config: pytest.Config) -> Golden:
    """The set that this session is run against."""
    return _golden_at(Path(config.getoption("--golden")))


@functools.cache
def _golden_at(folder: Path) -> Golden:
    return Golden(folder)


def scale_parameters(model: nn.Module, case: dict[str, Any]) -> None:
    """What makes the eps of norms visible: parameters whose dotted name holds a key, multiplied."""
    with torch.no_grad():
        for key, factor in case.get("scale_params", {}).items():
            for name, parameter in model.named_parameters():
                if f".{key}." in f".{name}.":
                    parameter.mul_(factor)


def schedule_of(recorded: dict[str, Any]) -> PyramidSchedule:
    """The released configuration gives the correlation of a block without its sign."""
    return PyramidSchedule(recorded["stages"], recorded["shift"], -recorded["gamma"], tuple(recorded["stage_range"]))


def part_of(model_name: str) -> str:
    """The part of a set that a released model name means."""
    return "flux" if "flux" in model_name else "mmdit"


def text_of(embeds_LD: Tensor, mask_L: Tensor, pooled_P: Tensor) -> TextEmbedding:
    """Valid tokens alone: the packed sequence has no padding, and no valid token ever sees it."""
    return TextEmbedding(embeds_LD[mask_L.bool()], pooled_P)


def assert_gradients(model: nn.Module, expected: dict[str, Tensor], kind: str) -> None:
    """The manifest's rule: off by at most 1e-5 of the tensor's largest gradient, plus 1e-6."""
    parameters = dict(model.named_parameters())
    for name, gradient in expected.items():
        own = parameters[name].grad
        assert own is not None, name
        worst = float((own - gradient).abs().max())
        note(kind, worst, worst / (1e-5 * float(gradient.abs().max()) + 1e-6), name)
