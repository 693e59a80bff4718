"""Codes of cells: they can be read back, state what was drawn, and do not jump as a digit crosses a border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from framegrove.digits.verifier_batches import clip_batch, frame_batch
from framegrove.digits.verifier_codes import COLOUR, DIGIT, FEATURES, PLACE, THERE, Codes, cell_of, scene_codes
from framegrove.digits.verifier_heads import frame_loss
from framegrove.digits.verifier_model import Packer, build_tokenizer, with_fast_norms
from framegrove.digits.verifier_scenes import draw_scene
from framegrove.errors import UserError


def test_codes_are_read_back_from_their_embeddings() -> None:
    codes = torch.randn(5, 16, FEATURES)
    for width in (32, 192):
        table = Codes(width)
        torch.testing.assert_close(table.read(table.embed(codes)), codes, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"text_width 16 is less than the .* features of a cell"):
        Codes(16)


def test_codes_say_what_was_drawn() -> None:
    for seed in range(50):
        scene = draw_scene(np.random.default_rng(seed), shown=4, painted=False)
        codes = scene_codes(scene)
        held = (codes[..., THERE] + 1) / 2
        for at in range(4):
            there = [drawn for drawn in scene.drawn if drawn.colours[at] is not None]
            assert float(held[at].sum()) == pytest.approx(len(there), abs=1e-4)
            for drawn in there:
                x, y = drawn.centres[at]
                cell = codes[at, cell_of(x, y)]
                assert int(cell[DIGIT].argmax()) == (10 if drawn.digits[at] is None else drawn.digits[at])
                # However a digit at a border is shared out, its cells together say where it is.
                near = [
                    c for c in range(16) if held[at, c] > 0 and codes[at, c, COLOUR].argmax() == cell[COLOUR].argmax()
                ]
                if len(there) == 1:
                    place = codes[at, near][:, PLACE].sum(0) * 32 + 32
                    torch.testing.assert_close(place, torch.tensor([float(x), float(y)]), atol=1e-3, rtol=0)


def test_a_batch_of_codes_asks_what_a_batch_of_pictures_asks() -> None:
    packer = Packer(build_tokenizer(), 16)
    seen, said = (clip_batch(0, 3, 4, 6, packer, painted=painted) for painted in (True, False))
    assert torch.equal(seen.packed.ids_BL, said.packed.ids_BL)
    assert torch.equal(seen.packed.answers_BK, said.packed.answers_BK)
    assert torch.equal(seen.tracks.motions_S, said.tracks.motions_S)
    assert len(seen.shown.frames_N3HW) == len(said.shown.codes_NMF)


def test_a_perfect_vision_tower_has_next_to_no_loss() -> None:
    batch, codes = frame_batch(0, 0, 32), Codes(192)
    perfect, figures = frame_loss(codes.embed(batch.codes_NMF), codes, batch)
    blind, _ = frame_loss(codes.embed(torch.zeros_like(batch.codes_NMF)), codes, batch)
    assert figures["digit"] == 1.0
    assert perfect < 0.2 < blind


def test_fast_norms_compute_what_the_usual_ones_do() -> None:
    usual = LlamaRMSNorm(32)
    usual.weight.data.uniform_(0.5, 2.0)
    states = torch.randn(2, 3, 32)
    fast = with_fast_norms(torch.nn.Sequential(usual))  # type: ignore[arg-type]
    torch.testing.assert_close(fast(states), usual(states))
