"""Training of the small verifier in four phases; trained all at once from random weights, it stays near chance.

1. reading: the text model alone learns to answer questions about codes, which state what each cell of a picture shows
   (verifier_codes.py). No picture is needed, so this is cheap. Clips of one frame come first, then up to two, four and
   six: among 16 cells a question's object is found several times sooner than among 96. From its states half way up the
   layers, how each digit has moved and whether it has changed must be readable, which it learns faster from these
   targets than from answers (verifier_heads.py).
2. windows: the vision tower alone learns to classify digits and colours in windows of 32x32 px, with the positions that
   these have in the picture.
3. frames: the vision tower and the connector learn to output the codes of whole frames.
4. joint: everything learns together on pictures, at a low learning rate that decays to zero, and the vision tower goes
   on learning codes; an average of the weights is kept. Many of the clips can be siblings from a generator, as the
   teacher reads them (verifier_siblings.py).

A run can also start from a finished verifier, to learn other views or words, and from siblings.

Muon optimizes matrices, AdamW the rest. The optimized weights are float32; forward and backward passes run on a copy in
bfloat16, which is much faster on a CPU with matrix units. Every step draws its clips from (seed, phase, step), so that
a resumed run sees what it would have seen.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from framegrove.config.engine import shipped_folder
from framegrove.digits import verifier_model
from framegrove.digits.config import VerifierPhase, VerifierTraining
from framegrove.digits.verifier_batches import clip_batch, frame_batch, window_batch
from framegrove.digits.verifier_codes import Codes
from framegrove.digits.verifier_heads import TrackHeads, WindowHeads, frame_loss, track_loss, window_loss
from framegrove.digits.verifier_siblings import SiblingScenes
from framegrove.digits.verifier_sights import MOST
from framegrove.files import append_line, identity
from framegrove.models.trainer_state import (
    check_same_run,
    read_checkpoint,
    save_checkpoint,
    update_average,
)

logger = logging.getLogger(__name__)

PHASES = ("reading", "windows", "frames", "joint")

_MOTION_WORDS = ("left", "up", "rising", "falling")  # the word that identifies each of MOTIONS, in their order
CHECKPOINT, _LOG = "checkpoint.pt", "log.jsonl"
_LOG_EVERY = 50
# What may be changed about a run that has begun.
_FREE = {"heldout_clips", "checkpoint_every", "threads"}


@dataclass(frozen=True)
class VerifierStep:
    """How far a run has come, after an optimizer step."""

    phase: str
    step: int  # of this phase, from 1
    steps: int
    done: int  # optimizer steps of all phases
    total: int
    figures: Mapping[str, float] = field(default_factory=dict)


class VerifierRun:
    """A training run that can be stopped at any moment and continues from its newest checkpoint, bit for bit."""

    def __init__(self, config: VerifierTraining, out: Path) -> None:
        """Start a run in the folder ``out``, or resume the one that is there.

        Raises UserError when that one has another configuration, of phases that have begun, or cannot be read.
        """
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.out = config, out
        self.tokenizer = verifier_model.build_tokenizer()
        self.packer = verifier_model.Packer(self.tokenizer, verifier_model.tokens_per_frame(config.model))
        self.model = verifier_model.build_model(config.model, self.tokenizer)
        self.codes = Codes(config.model.text_width)
        words, ids = self.model.get_input_embeddings().weight, self.tokenizer.get_vocab()
        self.codes.initialise_words(words, ids)
        if config.start is not None:
            folder = shipped_folder() if config.start == "shipped" else Path(config.start)
            verifier_model.start_from(folder, self.model, self.tokenizer)
        compute_copy = copy.deepcopy(self.model).to(getattr(torch, config.precision))
        self.compute_copy = verifier_model.with_fast_norms(compute_copy)
        self.windows = WindowHeads(config.model.vision_width)
        self.tracks = TrackHeads(words[[ids[word] for word in _MOTION_WORDS]])
        self.average: dict[str, torch.Tensor] | None = None
        self.siblings: SiblingScenes | None = None
        self.seconds = 0.0
        self._phase = 0
        self._step = 0
        self._optimizers: list[torch.optim.Optimizer] = []
        self._resume()

    def train(self, on_step: Callable[[VerifierStep], None] = lambda _: None) -> None:
        """Run what is left of the four phases, writing checkpoint.pt and log.jsonl into the run's folder."""
        self.out.mkdir(parents=True, exist_ok=True)
        while self._phase < len(PHASES):
            self._train_phase(PHASES[self._phase], on_step)
            self._phase += 1
            self._step = 0
            self._optimizers = []
            self._save()

    def finished(self) -> Idefics3ForConditionalGeneration:
        """The averaged model in evaluation mode: float32, its weights rounded to bfloat16, as they will be stored."""
        if self.average is not None:
            self.model.load_state_dict(self.average)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.copy_(weight.bfloat16().float())
        return self.model.eval()

    def _train_phase(self, name: str, on_step: Callable[[VerifierStep], None]) -> None:
        plan = self._plan(name)
        before = sum(self._plan(earlier).steps for earlier in PHASES[: self._phase])
        total = sum(self._plan(each).steps for each in PHASES)
        last = time.monotonic()
        if not self._optimizers:
            self._optimizers = self._enter(name, plan)
        if name == "joint" and self.config.joint.siblings and self._step < plan.steps:
            self.siblings = SiblingScenes.of(Path(self.config.joint.siblings))
        while self._step < plan.steps:
            figures = self._advance(name, plan)
            now = time.monotonic()
            self.seconds += now - last
            last = now
            on_step(VerifierStep(name, self._step, plan.steps, before + self._step, total, figures))
            if self._step % _LOG_EVERY == 0 or self._step == plan.steps:
                self._log(name, figures)
            if self._step % self.config.checkpoint_every == 0:
                self._save()

    def _plan(self, name: str) -> VerifierPhase:
        plan: VerifierPhase = getattr(self.config, name)
        return plan

    def _enter(self, name: str, plan: VerifierPhase) -> list[torch.optim.Optimizer]:
        """Freeze what a phase does not train, and return the optimizers of what it does."""
        parts = self.model.model
        trained: dict[str, list[nn.Module]] = {
            "windows": [parts.vision_model, self.windows],
            "frames": [parts.vision_model, parts.connector],
            "reading": [parts.text_model, self.model.lm_head, self.tracks],
            "joint": [self.model, self.tracks],
        }
        chosen = {id(weight) for module in trained[name] for weight in module.parameters()}
        for module in (self.model, self.windows, self.tracks):
            for weight in module.parameters():
                weight.requires_grad_(id(weight) in chosen)
        return _optimizers(trained[name], plan.learning_rate)

    def _advance(self, name: str, plan: VerifierPhase) -> dict[str, float]:
        """One optimizer step."""
        learning_rate = _learning_rate_scale(self._step, plan) * plan.learning_rate
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate
            optimizer.zero_grad(set_to_none=True)
        self._refresh_compute_copy()
        loss, figures = self._loss(name, plan)
        loss.backward()
        self._take_gradients()
        weights = [weight for optimizer in self._optimizers for weight in optimizer.param_groups[0]["params"]]
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self._step += 1
        if name == "joint":
            self._update_average()
        return {"loss": float(loss.detach()), "learning_rate": learning_rate} | figures

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Move the gradients of the compute copy to the weights that are optimized."""
        for weight, copied in zip(self.model.parameters(), self.compute_copy.parameters(), strict=True):
            if copied.grad is not None:
                weight.grad = copied.grad.to(weight.dtype)
                copied.grad = None

    @torch.no_grad()
    def _refresh_compute_copy(self) -> None:
        for weight, copied in zip(self.model.parameters(), self.compute_copy.parameters(), strict=True):
            copied.copy_(weight)
            copied.requires_grad_(weight.requires_grad)

    def _seed(self, name: str) -> int:
        """The seed of a phase's batches."""
        return self.config.seed * len(PHASES) + PHASES.index(name)

    def _loss(self, name: str, plan: VerifierPhase) -> tuple[torch.Tensor, dict[str, float]]:
        if name == "windows":
            return window_loss(self.compute_copy, self.windows, window_batch(self._seed(name), self._step, plan.batch))
        if name == "frames":
            frames = frame_batch(self._seed(name), self._step, plan.batch)
            cells = verifier_model.read_cells(self.compute_copy, frames.frames_N3HW)
            return frame_loss(cells, self.codes, frames)
        return self._question_loss(self._seed(name), plan, painted=name == "joint")

    def _question_loss(self, seed: int, plan: VerifierPhase, *, painted: bool) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of answers, with those of tracks and, on pictures, of codes added."""
        clips = clip_batch(
            seed,
            self._step,
            plan.batch,
            self.config.questions_per_clip,
            self.packer,
            painted=painted,
            longest=MOST if painted or self.config.start else _longest(self._step / plan.steps),
            siblings=self.siblings if painted else None,
        )
        if painted:
            cells = verifier_model.read_cells(self.compute_copy, clips.shown.frames_N3HW)
        else:
            cells = self.codes.embed(clips.shown.codes_NMF)
        by_clip = cells.reshape(plan.batch, -1, cells.shape[-1])
        logits, middle, late = verifier_model.answer_logits(self.compute_copy, by_clip, clips.packed)
        answers = clips.packed.answers_BK
        words = torch.where(answers > 0.5, self.packer.yes, self.packer.no)
        loss = functional.cross_entropy(logits.flatten(0, 1), words.flatten())
        said_yes = logits[..., self.packer.yes] > logits[..., self.packer.no]
        figures = {"right": float((said_yes == (answers > 0.5)).float().mean())}
        if len(clips.tracks.at_S):
            track, found = track_loss(middle.flatten(0, 1), late.flatten(0, 1), self.tracks, clips.tracks)
            loss, figures = loss + 0.3 * track, figures | found
        if painted:
            code, found = frame_loss(cells, self.codes, clips.shown)
            loss, figures = loss + 0.3 * code, figures | found
        return loss, figures

    def _update_average(self) -> None:
        state = {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
        if self.average is None:
            self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        averaged = [self.average[name] for name in state]
        update_average(averaged, list(state.values()), self.config.ema, updates=self._step)

    def _log(self, name: str, figures: Mapping[str, float]) -> None:
        rounded = {key: round(value, 5) for key, value in figures.items()}
        append_line(self.out / _LOG, {"phase": name, "step": self._step, "seconds": round(self.seconds, 1)} | rounded)

    def _save(self) -> None:
        state = {
            "config": identity(self.config.model_dump(mode="json")),
            "phase": self._phase,
            "step": self._step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "windows": self.windows.state_dict(),
            "tracks": self.tracks.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        save_checkpoint(self.out / CHECKPOINT, state)

    def _resume(self) -> None:
        path = self.out / CHECKPOINT
        state = read_checkpoint(path)
        if state is None:
            return
        # Phases that have not begun may still be changed.
        begun = PHASES[: state["phase"] + (state["step"] > 0)]
        ours = identity(self.config.model_dump(mode="json"))
        check_same_run(path, _settled(state["config"], begun), _settled(ours, begun))
        self.model.load_state_dict(state["model"])
        self.windows.load_state_dict(state["windows"])
        self.tracks.load_state_dict(state["tracks"])
        self.average, self.seconds = state["average"], state["seconds"]
        self._phase, self._step = state["phase"], state["step"]
        if state["optimizers"] and self._phase < len(PHASES):
            name = PHASES[self._phase]
            self._optimizers = self._enter(name, self._plan(name))
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        logger.info("continuing at phase %s, step %d", (*PHASES, "done")[self._phase], self._step)


def _longest(done: float) -> int:
    """Frames of the longest clips when a share of ``done`` of the reading phase is over."""
    if done < 0.13:
        return 1
    if done < 0.33:
        return 2
    return 4 if done < 0.6 else MOST


def _settled(config: Mapping[str, Any], begun: tuple[str, ...]) -> dict[str, Any]:
    """The part of a configuration on which the steps so far depend."""
    return {key: value for key, value in config.items() if key not in _FREE and (key not in PHASES or key in begun)}


def _optimizers(modules: list[nn.Module], learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for vectors, embeddings and the heads that losses read."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in (named for module in modules for named in module.named_parameters()):
        inner = weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "head_"))
        (matrices if inner else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _learning_rate_scale(step: int, plan: VerifierPhase) -> float:
    """Share of the peak: a warm-up over the first 3% of steps, at least 20, then a linear decay to ``final_share``."""
    warm = max(20, plan.steps * 3 // 100)
    decay = 1 - (1 - plan.final_share) * max(0, step - warm) / max(1, plan.steps - warm)
    return min(1.0, (step + 1) / warm) * decay
