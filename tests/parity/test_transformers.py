"""MM-DiT and FLUX-style transformer against recorded tensors: outputs, intermediates and gradients of every case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from framegrove.models.flux import Flux
from framegrove.models.mmdit import MMDiT
from framegrove.models.packed import Packed, Prefix, Sample
from framegrove.models.transformers import Transformer
from tests.parity.recorded import TRANSFORMERS, Golden, assert_gradients, golden_of, text_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    golden = golden_of(metafunc.config)
    every = [(part, name, case) for part in TRANSFORMERS for name, case in golden.cases(part).items()]
    chosen = {
        "case": every,
        "with_gradients": [entry for entry in every if entry[2].get("grads")],
        "with_intermediates": [entry for entry in every if entry[2].get("debug")],
    }
    for kind, entries in chosen.items():
        if kind in metafunc.fixturenames:
            pairs = [(part, name) for part, name, _ in entries]
            metafunc.parametrize(kind, pairs, ids=["-".join(pair) for pair in pairs])


class Recorded:
    """One case of one transformer."""

    def __init__(self, golden: Golden, part: str, name: str) -> None:
        self.part, self.name = part, name
        self.case: dict[str, Any] = golden.cases(part)[name]
        self.io = golden.tensors(f"{part}_io")
        self.limits = golden.limits(f"{part}_pred")
        self.golden = golden

    def model(self) -> Transformer:
        return self.golden.transformer(self.part, self.case)

    @property
    def stages(self) -> int:
        return len(self.case["stages"])

    def samples(self) -> list[tuple[int, int, Sample]]:
        """(stage, batch, sample) of the case; recorded rows of text run batch by batch, stages inside."""
        source = f"in.{self.case.get('inputs_from', self.name)}"
        texts = [f"{source}.{key}" for key in ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")]
        result = []
        for stage, shapes in enumerate(self.case["stages"]):
            clips = [self.io[f"{source}.sample.s{stage}.c{clip}"] for clip in range(len(shapes))]
            for batch in range(clips[0].shape[0]):
                row = batch * self.stages + stage
                text = text_of(*(self.io[key][row] for key in texts))
                prefix = Prefix(text, tuple(clip[batch] for clip in clips[:-1]))
                timestep = float(self.io[f"{source}.timestep_ratio"][row])
                result.append((stage, batch, Sample(prefix, clips[-1][batch], timestep)))
        return result

    def packed(self, model: Transformer) -> Packed:
        return model.pack([sample for _, _, sample in self.samples()])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return golden_of(request.config)


def test_predictions(golden: Golden, case: tuple[str, str]) -> None:
    recorded = Recorded(golden, *case)
    model = recorded.model()
    with torch.no_grad():
        predictions = model(recorded.packed(model))
    for (stage, batch, _), prediction in zip(recorded.samples(), predictions, strict=True):
        expected = recorded.io[f"out.{recorded.name}.pred.s{stage}"][batch]
        recorded.limits.check(prediction, expected, f"{recorded.name} stage {stage}")


def test_one_by_one_equals_packed_together(golden: Golden, case: tuple[str, str]) -> None:
    recorded = Recorded(golden, *case)
    model = recorded.model()
    samples = [sample for _, _, sample in recorded.samples()]
    with torch.no_grad():
        together = model(model.pack(samples))
        alone = [model(model.pack([sample]))[0] for sample in samples]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=recorded.limits.atol, rtol=recorded.limits.rtol)


def test_gradients(golden: Golden, with_gradients: tuple[str, str]) -> None:
    recorded = Recorded(golden, *with_gradients)
    model = recorded.model()
    loss = sum((prediction.square().sum() for prediction in model(recorded.packed(model))), torch.zeros(()))
    out = f"out.{recorded.name}"
    torch.testing.assert_close(loss, recorded.io[f"{out}.loss_sumsq"][0], rtol=1e-5, atol=0)
    loss.backward()
    expected = {name: recorded.io[f"{out}.grad.{name}"] for name in recorded.case["grads"]}
    assert_gradients(model, expected, f"{recorded.part}_gradients")


def test_the_position_table_is_computed_as_recorded(golden: Golden) -> None:
    """It is part of a state dict; a model trained from scratch must have the same."""
    if "mmdit" not in golden.cfg:
        pytest.skip("no MM-DiT in this set")
    model = golden.transformer("mmdit")
    assert isinstance(model, MMDiT)
    fresh = MMDiT(model.config)
    torch.testing.assert_close(fresh.pos_embed.pos_embed, model.pos_embed.pos_embed, atol=1e-6, rtol=0)


def test_intermediates(golden: Golden, with_intermediates: tuple[str, str]) -> None:
    """Condition, embeddings and every block's streams, sample by sample."""
    recorded = Recorded(golden, *with_intermediates)
    limits = golden.limits("debug")
    compared = set()
    for name, value, expected in _streams(recorded):
        limits.check(value, expected, f"{recorded.part} {name}")
        compared.add(name)
    left = {key.split(".", 2)[2] for key in recorded.io if key.startswith(f"dbg.{recorded.name}.")} - compared
    assert all(name.startswith(("attention_mask", "rotary")) for name in left), left


def _streams(recorded: Recorded) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, ours, recorded) of what each part gives for each sample, run alone and put in order of time.

    Recorded text is padded behind; visual tokens of all stages stand in one row, in single blocks each stage's behind
    its text. Where ours gives current tokens alone, they are the last ones of their stage.
    """
    model = recorded.model()
    source = f"in.{recorded.case.get('inputs_from', recorded.name)}"
    padded = recorded.io[f"{source}.encoder_hidden_states"].shape[1]
    starts: dict[int, int] = {0: 0}
    for stage, batch, sample in recorded.samples():
        packed = model.pack([sample])
        text, visual = len(packed.text_LD), len(packed.patches_LP)
        before = starts[stage]
        starts[stage + 1] = before + visual
        order = packed.times_L.argsort(stable=True)
        row = batch * recorded.stages + stage
        for name, value in _parts(model, packed):
            if name in ("patch_plus_pos", "x_embed"):
                yield f"{name}.{stage}", value[order], recorded.io[f"dbg.{recorded.name}.{name}.{stage}"][batch]
                continue
            expected = recorded.io[f"dbg.{recorded.name}.{name}"]
            if name.startswith("single"):
                start = before + padded * (stage + 1)
                if len(value) == text + visual:
                    yield name, value[:text], expected[batch, start - padded :][:text]
                    value = value[text:]
                yield name, *_ends(value, order, expected[batch, start : start + visual])
            elif name.endswith(".1"):
                yield name, *_ends(value, order, expected[batch, before : before + visual])
            elif name == "temb":
                yield name, value, expected[row]
            else:
                yield name, value, expected[row, :text]


def _ends(value: Tensor, order: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    value = value[order] if len(value) == len(order) else value
    return value, expected[-len(value) :]


def _parts(model: Transformer, packed: Packed) -> list[tuple[str, Tensor]]:
    """What each layer gives in one forward, under the recorded names."""
    seen: list[tuple[str, Tensor]] = []

    def note(layer: torch.nn.Module, name: str, pick: int | None = None) -> None:
        def after(_: object, __: object, out: Any) -> None:
            seen.append((name, (out if pick is None else out[pick]).detach()))

        hooks.append(layer.register_forward_hook(after))

    hooks: list[Any] = []
    note(model.time_text_embed, "temb", 0)
    note(model.context_embedder, "context_embed")
    if isinstance(model, Flux):
        note(model.x_embedder, "x_embed")
        for number, block in enumerate(model.single_transformer_blocks):
            note(block, f"single{number}")
    else:
        note(model.pos_embed, "patch_plus_pos")
    for number, block in enumerate(model.transformer_blocks):
        if not block.last:
            note(block, f"block{number}.0", 0)
        note(block, f"block{number}.1", 1)
    with torch.no_grad():
        model(packed)
    for hook in hooks:
        hook.remove()
    return seen
