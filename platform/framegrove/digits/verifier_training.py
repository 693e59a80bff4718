"""Training of the small verifier, in four stages, because from scratch all at once it stays near chance.

1. reading: the text model alone learns to answer questions about codes, which say what stands in each cell of a picture
   (verifier_codes.py). Nothing is painted or seen, so this is cheap. Clips of one frame come first, then of two: what
   a question is about is found several times sooner among 16 cells than among 64. Half way up, the text model also
   has to say how each digit moved and whether it changed, which no question teaches as fast.
2. windows: the vision tower alone names single digits and colours in 32x32 windows, at their place in the picture.
3. frames: the vision tower and the connector learn to say the codes of whole frames.
4. joint: everything together on pictures, the eyes still saying codes, at a low rate that decays to nothing; an average
   of the weights is kept. Part of the pictures went through the shipped generator (verifier_redrawn.py).

Matrices learn by Muon, the rest by AdamW. The weights are float32; a bfloat16 twin of them does the work, which on a
CPU with matrix units is much faster. Every step draws its clips from (seed, stage, step), so a run that is resumed sees
what it would have seen.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from framegrove.config.verifier import TrainingStage, VerifierTraining
from framegrove.digits import verifier_model
from framegrove.digits.verifier_batches import clip_batch, frame_batch, window_batch
from framegrove.digits.verifier_codes import Codes
from framegrove.digits.verifier_heads import TrackHeads, WindowHeads, frame_loss, track_loss, window_loss
from framegrove.digits.verifier_regenerated import redrawn_scenes
from framegrove.digits.verifier_scenes import Scene
from framegrove.errors import UserError

logger = logging.getLogger(__name__)

_TELLING_WORDS = ("left", "up", "rising", "falling")  # one of each of MOTIONS, in order

STAGES = ("reading", "windows", "frames", "joint")


@dataclass
class Progress:
    """Where a run stands; what a caller's progress display is told after every step."""

    stage: str
    step: int  # of this stage, from 1
    steps: int
    done: int  # of all stages
    total: int
    figures: dict[str, float] = field(default_factory=dict)


class VerifierRun:
    """A training run that can be stopped after any step and continued from its newest checkpoint."""

    def __init__(self, config: VerifierTraining, out: Path) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.out = config, out
        self.tokenizer = verifier_model.build_tokenizer()
        self.packer = verifier_model.Packer(self.tokenizer, verifier_model.tokens_per_frame(config.model))
        self.model = verifier_model.build_model(config.model, self.tokenizer)
        self.codes = Codes(config.model.text_width)
        words, ids = self.model.get_input_embeddings().weight, self.tokenizer.get_vocab()
        self.codes.name(words, ids)
        self.twin = verifier_model.quickened(copy.deepcopy(self.model).to(getattr(torch, config.precision)))
        self.windows = WindowHeads(config.model.vision_width)
        self.tracks = TrackHeads(words[[ids[word] for word in _TELLING_WORDS]])
        self.average: dict[str, torch.Tensor] | None = None
        self.redrawn: tuple[Scene, ...] = ()
        self.seconds = 0.0
        self._stage, self._step = 0, 0
        self._optimisers: list[torch.optim.Optimizer] = []
        self._resume()

    def train(self, report: Callable[[Progress], None] = lambda _: None) -> None:
        """Run what is left of the four stages, writing checkpoints and log.jsonl into ``out``."""
        self.out.mkdir(parents=True, exist_ok=True)
        total = sum(self._plan(name).steps for name in STAGES)
        last_saved = time.monotonic()
        while self._stage < len(STAGES):
            name = STAGES[self._stage]
            plan = self._plan(name)
            if not self._optimisers:
                self._optimisers = self._enter(name, plan)
            if name == "joint" and self.config.joint.redrawn:
                self._redraw(report, total - plan.steps, total)
            while self._step < plan.steps:
                figures = self._advance(name, plan)
                now = time.monotonic()
                self.seconds, last_saved = self.seconds + now - last_saved, now
                done = sum(self._plan(n).steps for n in STAGES[: self._stage]) + self._step
                report(Progress(name, self._step, plan.steps, done, total, figures))
                if self._step % 50 == 0 or self._step == plan.steps:
                    self._log(name, figures)
                if self._step % self.config.checkpoint_every == 0:
                    self._save()
            self._stage, self._step, self._optimisers = self._stage + 1, 0, []
            self._save()

    def finished(self) -> Idefics3ForConditionalGeneration:
        """The averaged model, rounded to bfloat16 as it is stored, in float32 and in evaluation mode."""
        if self.average is not None:
            self.model.load_state_dict(self.average)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.copy_(weight.bfloat16().float())
        return self.model.eval()

    def _plan(self, name: str) -> TrainingStage:
        plan: TrainingStage = getattr(self.config, name)
        return plan

    def _enter(self, name: str, plan: TrainingStage) -> list[torch.optim.Optimizer]:
        eyes, bridge = self.model.model.vision_model, self.model.model.connector
        trained: dict[str, list[nn.Module]] = {
            "windows": [eyes, self.windows],
            "frames": [eyes, bridge],
            "reading": [self.model.model.text_model, self.model.lm_head, self.tracks],
            "joint": [self.model, self.tracks],
        }
        chosen = {id(p) for module in trained[name] for p in module.parameters()}
        for module in (self.model, self.windows, self.tracks):
            for weight in module.parameters():
                weight.requires_grad_(id(weight) in chosen)
        return list(_optimisers(trained[name], plan.rate))

    def _advance(self, name: str, plan: TrainingStage) -> dict[str, float]:
        """One optimiser step."""
        scale = _schedule(self._step, plan)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = scale * group["peak"]
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss, figures = self._loss(name, plan)
        loss.backward()
        self._take_gradients()
        weights = [p for o in self._optimisers for g in o.param_groups for p in g["params"]]
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        if name == "joint":
            self._average()
        self._step += 1
        return {"loss": float(loss.detach()), "rate": scale * plan.rate} | figures

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Move the twin's gradients to the weights that learn."""
        for weight, worker in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            if worker.grad is not None:
                weight.grad = worker.grad.to(weight.dtype)
                worker.grad = None

    @torch.no_grad()
    def _refresh_twin(self) -> None:
        for weight, worker in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            worker.copy_(weight)
            worker.requires_grad_(weight.requires_grad)

    def _redraw(self, report: Callable[[Progress], None], done: int, total: int) -> None:
        count = self.config.joint.redrawn
        kept_in = self.out / "redrawn.npz"
        seed = self.config.seed * len(STAGES) + len(STAGES) - 1
        self.redrawn = redrawn_scenes(
            count, seed, kept_in, lambda drawn: report(Progress("redrawing", drawn, count, done, total))
        )

    def _loss(self, name: str, plan: TrainingStage) -> tuple[torch.Tensor, dict[str, float]]:
        self._refresh_twin()
        seed = self.config.seed * len(STAGES) + STAGES.index(name)
        if name == "windows":
            return window_loss(self.twin, self.windows, window_batch(seed, self._step, plan.batch))
        if name == "frames":
            frames = frame_batch(seed, self._step, plan.batch)
            return frame_loss(verifier_model.read_cells(self.twin, frames.frames_N3HW), self.codes, frames)
        return self._question_loss(seed, plan, painted=name == "joint")

    def _question_loss(self, seed: int, plan: TrainingStage, *, painted: bool) -> tuple[torch.Tensor, dict[str, float]]:
        longest = 4 if painted else _longest(self._step / plan.steps)
        count = self.config.questions_per_clip
        clips = clip_batch(
            seed,
            self._step,
            plan.batch,
            count,
            self.packer,
            painted=painted,
            longest=longest,
            redrawn=self.redrawn if painted else (),
        )
        if painted:
            cells = verifier_model.read_cells(self.twin, clips.shown.frames_N3HW)
        else:
            cells = self.codes.embed(clips.shown.codes_NMF)
        flat = cells.reshape(plan.batch, -1, cells.shape[-1])
        logits, middle, late = verifier_model.answer_logits(self.twin, flat, clips.packed)
        answers = clips.packed.answers_BK
        words = torch.where(answers > 0.5, self.packer.yes, self.packer.no)
        loss = functional.cross_entropy(logits.flatten(0, 1), words.flatten())
        said_yes = logits[..., self.packer.yes] > logits[..., self.packer.no]
        figures = {"right": float((said_yes == (answers > 0.5)).float().mean())}
        if len(clips.tracks.at_S):
            tracking, tracked = track_loss(middle.flatten(0, 1), late.flatten(0, 1), self.tracks, clips.tracks)
            loss, figures = loss + 0.3 * tracking, figures | tracked
        if painted:  # the eyes still learn most from what each cell holds
            seeing, seen = frame_loss(cells, self.codes, clips.shown)
            loss, figures = loss + 0.3 * seeing, figures | seen
        return loss, figures

    @torch.no_grad()
    def _average(self) -> None:
        now = self.model.state_dict()
        if self.average is None:
            self.average = {name: value.clone() for name, value in now.items()}
        for name, value in now.items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - min(self.config.ema, (1 + self._step) / (10 + self._step)))

    def _log(self, name: str, figures: dict[str, float]) -> None:
        line = {"stage": name, "step": self._step, "seconds": round(self.seconds, 1)}
        rounded = {key: round(value, 5) for key, value in figures.items()}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line | rounded) + "\n")

    def _checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def _save(self) -> None:
        state = {
            "config": self.config.model_dump_json(),
            "stage": self._stage,
            "step": self._step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "windows": self.windows.state_dict(),
            "tracks": self.tracks.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        building = self._checkpoint().with_suffix(".building")
        torch.save(state, building)
        building.replace(self._checkpoint())

    def _resume(self) -> None:
        path = self._checkpoint()
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{path} is not a readable checkpoint ({error}): remove it to start afresh") from error
        begun = STAGES[: state["stage"] + (state["step"] > 0)]
        if _settled(VerifierTraining.model_validate_json(state["config"]), begun) != _settled(self.config, begun):
            raise UserError(
                f"{path} was made with another configuration: use another --out, or remove it to start afresh "
                "(only stages that have not begun may be changed)"
            )
        self.model.load_state_dict(state["model"])
        self.windows.load_state_dict(state["windows"])
        self.tracks.load_state_dict(state["tracks"])
        self.average, self.seconds = state["average"], state["seconds"]
        self._stage, self._step = state["stage"], state["step"]
        if state["optimisers"] and self._stage < len(STAGES):
            name = STAGES[self._stage]
            self._optimisers = self._enter(name, self._plan(name))
            for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        logger.info("continuing at stage %s, step %d", (*STAGES, "done")[self._stage], self._step)


def _longest(done: float) -> int:
    """Frames of the longest clips, by how much of reading is done."""
    return 1 if done < 0.13 else 2 if done < 0.33 else 4


def _settled(config: VerifierTraining, begun: tuple[str, ...]) -> dict[str, Any]:
    """The part of a configuration that what has been done so far depends on."""
    whole = config.model_dump(exclude={"heldout_clips", "generated_clips", "checkpoint_every", "threads"})
    return {key: value for key, value in whole.items() if key not in STAGES or key in begun}


def _optimisers(modules: list[nn.Module], rate: float) -> Iterator[torch.optim.Optimizer]:
    named = [(name, p) for module in modules for name, p in module.named_parameters()]
    matrices = [p for name, p in named if p.ndim == 2 and not any(n in name for n in ("embed", "lm_head", "head_"))]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    yield torch.optim.Muon(
        [{"params": matrices, "peak": rate}], lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    yield torch.optim.AdamW([{"params": others, "peak": rate}], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)


def _schedule(step: int, plan: TrainingStage) -> float:
    """Warm-up over the first 3% (20 steps at least), then linearly down to ``final_rate``."""
    warm = max(20, plan.steps * 3 // 100)
    decay = 1 - (1 - plan.final_rate) * max(0, step - warm) / max(1, plan.steps - warm)
    return min(1.0, (step + 1) / warm) * decay
