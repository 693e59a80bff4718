"""The MM-DiT against recorded tensors of the authors' implementation: outputs, intermediates and gradients.

Runs every case of a golden folder (--golden DIR). Padded text of the recordings is dropped: the packed sequence has
none, and no valid token ever sees it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from framegrove.config.model import TransformerConfig
from framegrove.models.mmdit import MMDiT
from framegrove.models.packed import Packed, Prefix, Sample, TextEmbedding


def _manifest(config: pytest.Config) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((Path(config.getoption("--golden")) / "manifest.json").read_text("utf-8"))
    return manifest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = _manifest(metafunc.config)["cfg"]["mmdit"]["cases"]
    chosen = {
        "case": list(cases),
        "with_gradients": [name for name, case in cases.items() if case.get("grads")],
        "with_intermediates": [name for name, case in cases.items() if case.get("debug")],
    }
    for kind, names in chosen.items():
        if kind in metafunc.fixturenames:
            metafunc.parametrize(kind, names)


class Recorded:
    """A golden folder's MM-DiT part."""

    def __init__(self, config: pytest.Config) -> None:
        folder = Path(config.getoption("--golden"))
        manifest = _manifest(config)
        self.cfg = manifest["cfg"]["mmdit"]
        self.tolerances = manifest["recommended_tolerances"]
        self.weights = load_file(folder / "mmdit_weights.safetensors")
        self.io = load_file(folder / "mmdit_io.safetensors")

    def model(self, name: str) -> MMDiT:
        case = self.cfg["cases"][name]
        config = TransformerConfig.from_public(self.cfg["config"])
        if case.get("noncausal"):
            config = config.model_copy(update={"use_temporal_causal": False})
        model = MMDiT(config)
        model.load_state_dict(self.weights)
        with torch.no_grad():
            for key, factor in case.get("scale_params", {}).items():
                for dotted, parameter in model.named_parameters():
                    if f".{key}." in f".{dotted}.":
                        parameter.mul_(factor)
        return model

    def samples(self, name: str) -> list[tuple[int, int, Sample]]:
        """(stage, batch, sample) of a case; recorded rows run batch by batch, stages inside."""
        case = self.cfg["cases"][name]
        source = f"in.{case.get('inputs_from', name)}"
        stages = case["stages"]
        result = []
        for stage, shapes in enumerate(stages):
            for batch in range(case["batch"]):
                row = batch * len(stages) + stage
                clips = [self.io[f"{source}.sample.s{stage}.c{clip}"][batch] for clip in range(len(shapes))]
                valid = self.io[f"{source}.encoder_attention_mask"][row].bool()
                text = TextEmbedding(
                    self.io[f"{source}.encoder_hidden_states"][row][valid],
                    self.io[f"{source}.pooled_projections"][row],
                )
                timestep = float(self.io[f"{source}.timestep_ratio"][row])
                result.append((stage, batch, Sample(Prefix(text, tuple(clips[:-1])), clips[-1], timestep)))
        return result

    def packed(self, model: MMDiT, name: str) -> Packed:
        return model.pack([sample for _, _, sample in self.samples(name)])


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.config)


def test_predictions(recorded: Recorded, case: str) -> None:
    model = recorded.model(case)
    tolerance = recorded.tolerances["mmdit_pred"]
    with torch.no_grad():
        predictions = model(recorded.packed(model, case))
    for (stage, batch, _), prediction in zip(recorded.samples(case), predictions, strict=True):
        expected = recorded.io[f"out.{case}.pred.s{stage}"][batch]
        torch.testing.assert_close(prediction, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])


def test_one_by_one_equals_packed_together(recorded: Recorded, case: str) -> None:
    model = recorded.model(case)
    samples = [sample for _, _, sample in recorded.samples(case)]
    with torch.no_grad():
        together = model(model.pack(samples))
        alone = [model(model.pack([sample]))[0] for sample in samples]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradients(recorded: Recorded, with_gradients: str) -> None:
    """The manifest's rule: off by at most 1e-5 of the tensor's largest gradient, plus 1e-6."""
    name = with_gradients
    model = recorded.model(name)
    loss = sum((prediction.square().sum() for prediction in model(recorded.packed(model, name))), torch.zeros(()))
    torch.testing.assert_close(loss, recorded.io[f"out.{name}.loss_sumsq"][0], rtol=1e-5, atol=0)
    loss.backward()
    parameters = dict(model.named_parameters())
    for key in recorded.cfg["cases"][name]["grads"]:
        expected, grad = recorded.io[f"out.{name}.grad.{key}"], parameters[key].grad
        assert grad is not None, key
        worst = float((grad - expected).abs().max())
        assert worst <= 1e-5 * float(expected.abs().max()) + 1e-6, f"{key}: {worst}"


def test_intermediates(recorded: Recorded, with_intermediates: str) -> None:
    """Condition, embeddings and every block's streams, sample by sample."""
    name = with_intermediates
    model = recorded.model(name)
    seen = _streams(model, recorded, name)
    tolerance = recorded.tolerances["debug"]
    for key, value in seen.items():
        expected = recorded.io[f"dbg.{name}.{key}"]
        for row, part in enumerate(value):
            wanted = expected[row, -len(part) :] if key.endswith(".1") else expected[row][: len(part)]
            worst = float((part - wanted).abs().max())
            assert torch.allclose(part, wanted, atol=tolerance["atol"], rtol=tolerance["rtol"]), f"{key}: {worst}"


def _streams(model: MMDiT, recorded: Recorded, name: str) -> dict[str, list[Tensor]]:
    """What each part gives for each sample, run alone and put in order of time, as recorded."""
    seen: dict[str, list[Tensor]] = {}
    order: list[Tensor] = []

    def note(key: str, value: Tensor) -> None:
        whole = len(value) == len(order[-1]) and key.endswith((".1", "pos.0"))
        seen.setdefault(key, []).append(value.detach()[order[-1]] if whole else value.detach())

    hooks = [
        model.time_text_embed.register_forward_hook(lambda _, __, out: note("temb", out[0])),
        model.context_embedder.register_forward_hook(lambda _, __, out: note("context_embed", out)),
        model.pos_embed.register_forward_hook(lambda _, args, out: note("patch_plus_pos.0", out)),
    ]
    last = len(model.transformer_blocks) - 1
    for number, block in enumerate(model.transformer_blocks):

        def after(_: object, __: object, out: tuple[Tensor, Tensor], number: int = number) -> None:
            if number < last:
                note(f"block{number}.0", out[0])
            note(f"block{number}.1", out[1])

        hooks.append(block.register_forward_hook(after))
    for _, _, sample in recorded.samples(name):
        packed = model.pack([sample])
        order.append(packed.times_L.argsort(stable=True))
        with torch.no_grad():
            model(packed)
    for hook in hooks:
        hook.remove()
    return seen
