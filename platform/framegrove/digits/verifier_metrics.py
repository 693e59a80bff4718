"""What the verifier is worth: balanced accuracy on held-out clips, by what is asked and by kind of negative."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from transformers import Idefics3ForConditionalGeneration

from framegrove.digits.verifier_codes import Codes, scene_codes
from framegrove.digits.verifier_model import Packer, answer_logits, read_cells, save_folder
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import Quality, Scene, draw_scene

if TYPE_CHECKING:
    from framegrove.digits.verifier_training import VerifierRun

_QUESTIONS = 12
_BATCH = 25
_SEED = 90210


@dataclass(frozen=True)
class Mark:
    """Share of right answers to one kind of question, and out of how many."""

    right: float
    asked: int


@dataclass(frozen=True)
class Marks:
    """Marks by aspect and kind, on pictures that are clear or fair; ``unclear`` sums up the others."""

    by_kind: dict[tuple[str, str], Mark]
    unclear: dict[str, float]

    def balanced(self, aspect: str, kind: str | None = None) -> float:
        """Mean of the right share among true statements and among false ones (of one kind, or of all kinds alike)."""
        true = [m.right for (a, k), m in self.by_kind.items() if a == aspect and k == "true"]
        false = [m.right for (a, k), m in self.by_kind.items() if a == aspect and k == (kind or k) and k != "true"]
        return float(np.mean([np.mean(rights) for rights in (true, false) if rights]))

    @property
    def aspects(self) -> list[str]:
        return sorted({aspect for aspect, _ in self.by_kind})

    def table(self, title: str) -> Table:
        """For the terminal."""
        table = Table("question", "kind", "right", "asked", "balanced", title=title)
        for (aspect, kind), mark in sorted(self.by_kind.items()):
            balanced = self.balanced(aspect) if kind == "true" else self.balanced(aspect, kind)
            table.add_row(aspect, kind, f"{mark.right:.1%}", str(mark.asked), f"{balanced:.1%}")
        return table

    def markdown(self) -> str:
        """For a README."""
        lines = ["| question | kind | right | asked | balanced accuracy |", "| --- | --- | --- | --- | --- |"]
        for aspect in self.aspects:
            lines.append(f"| **{aspect}** | all | | | **{self.balanced(aspect):.1%}** |")
            for (_, kind), mark in sorted((k, m) for k, m in self.by_kind.items() if k[0] == aspect):
                balanced = "" if kind == "true" else f"{self.balanced(aspect, kind):.1%}"
                lines.append(f"| | {kind} | {mark.right:.1%} | {mark.asked} | {balanced} |")
        return "\n".join(lines)


def examine(
    model: Idefics3ForConditionalGeneration,
    packer: Packer,
    clips: int,
    report: Callable[[str], None] = lambda _: None,
    codes: Codes | None = None,
) -> Marks:
    """Ask about ``clips`` clips of held-out scans, a quarter each of 1, 2, 3 and 4 shown frames.

    With ``codes``, the text model is given the clips' own codes and no pictures: what it is worth with perfect eyes.
    """

    def batches() -> Iterator[list[Scene]]:
        for number in range(max(4, -(-clips // _BATCH))):
            rng = np.random.default_rng([_SEED, number])
            painted, shown = codes is None, 1 + number % 4
            yield [draw_scene(rng, shown=shown, split="heldout", painted=painted) for _ in range(_BATCH)]
            if (number + 1) % 10 == 0:
                report(f"examined {(number + 1) * _BATCH} clips")

    return _marks(model, packer, batches(), codes)


def examine_scenes(model: Idefics3ForConditionalGeneration, packer: Packer, scenes: Sequence[Scene]) -> Marks:
    """Ask about given scenes of one length, a generator's for instance."""
    return _marks(model, packer, (scenes[at : at + _BATCH] for at in range(0, len(scenes), _BATCH)), None)


@torch.no_grad()
def _marks(
    model: Idefics3ForConditionalGeneration, packer: Packer, batches: Iterable[Sequence[Scene]], codes: Codes | None
) -> Marks:
    seen: dict[tuple[str, str], list[bool]] = defaultdict(list)
    unclear: dict[str, list[bool]] = defaultdict(list)
    for number, scenes in enumerate(batches):
        rng = np.random.default_rng([_SEED, number, 1])
        asked = [ask_about(scene, rng, _QUESTIONS) for scene in scenes]
        shown = scenes[0].frames.shape[0]
        packed = packer.pack(shown, [[q.text for q in r] for r in asked], [[q.answer for q in r] for r in asked])
        if codes is None:
            cells = read_cells(model, torch.cat([scene.frames for scene in scenes]))
        else:
            cells = codes.embed(torch.cat([scene_codes(scene) for scene in scenes]))
        logits, *_ = answer_logits(model, cells.reshape(len(scenes), -1, cells.shape[-1]), packed)
        says = (logits[..., packer.yes] > logits[..., packer.no]).tolist()
        for scene, row, said in zip(scenes, asked, says, strict=True):
            for question, yes in zip(row, said, strict=True):
                if scene.quality is Quality.UNCLEAR and question.kind != "unclear":
                    unclear[question.aspect.value].append(yes == question.answer)
                else:
                    seen[question.aspect.value, question.kind].append(yes == question.answer)
    return Marks(
        {key: Mark(float(np.mean(rights)), len(rights)) for key, rights in seen.items()},
        {key: float(np.mean(rights)) for key, rights in unclear.items()},
    )


def save(
    run: VerifierRun, model: Idefics3ForConditionalGeneration, marks: Mapping[str, Marks], out: Path, command: str
) -> None:
    """Write the model folder with its figures beside it: metrics.json and README.md. ``marks`` has "held-out" ones and,
    where the generator was there to be examined on, "generated" ones."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    save_folder(model, run.tokenizer, run.config.model, out)
    figures: dict[str, Any] = {
        "command": command,
        "seconds": round(run.seconds),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "config": run.config.model_dump(),
    }
    for title, of in marks.items():
        figures[title] = {
            "balanced_accuracy": {aspect: round(of.balanced(aspect), 4) for aspect in of.aspects},
            "by_kind": {
                f"{a}: {k}": {"right": round(m.right, 4), "asked": m.asked} for (a, k), m in of.by_kind.items()
            },
            "unclear_pictures": {aspect: round(right, 4) for aspect, right in of.unclear.items()},
        }
    (out / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_readme(figures, marks), encoding="utf-8")


def _readme(figures: Mapping[str, Any], marks: Mapping[str, Marks]) -> str:
    heldout = marks["held-out"]
    text = f"""# The verifier of the digits world

A small Idefics3 ({figures["parameters"]:,} parameters, stored in bfloat16, served in float32) that answers yes/no
questions about up to four frames of a clip. Made by

    {figures["command"]}

in {figures["seconds"]:,} seconds on one CPU thread. Balanced accuracy is the mean of the right share among true and
among false statements, kinds of false statement counting alike. On held-out clips (scans never trained on, flawed as a
generator's are, pictures clear or fair):

{heldout.markdown()}

On pictures too blurred or noisy to be called clear, the share of right answers is
{", ".join(f"{aspect} {right:.1%}" for aspect, right in sorted(heldout.unclear.items()))}.
"""
    if "generated" in marks:
        text += f"""
On clips of the shipped generator, against what the oracle (evaluation/digits_oracle.py, never seen in training) reads
in each of their units, where it is sure of that:

{marks["generated"].markdown()}
"""
    return text
